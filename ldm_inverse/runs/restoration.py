"""Restores measured pictures several at a time, and writes what comes of each into the run's folder.

Each ends as it would alone: it has its own random stream, trace, state and outcome, and whatever befalls one of a batch
leaves the others as they are.
"""

import gc
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.measured_picture import MeasuredPicture
from ldm_inverse.runs.recorder import BatchRecorder, Recorder
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.progress_bar import ProgressBar
from ldm_inverse.solvers.restore import restore
from ldm_inverse.solvers.solver import Solver
from util.errors import ImageError, is_out_of_memory
from util.logging import LOGGER
from util.seeds import torch_stream


@dataclass
class Restoration:
    """One of the restorations of a picture, while it is in hand: ``sample`` is its number."""

    picture: MeasuredPicture
    sample: int
    recorder: Recorder

    @property
    def group(self) -> tuple[Hashable, ...]:
        """The key that is equal within a batch: the picture's shape and class, the shapes of the measurement and its
        state, and the steps that are done.
        """
        measured = ((name, tensor.shape) for name, tensor in self.picture.measurement.tensors().items())
        return self.picture.shape, self.picture.label, *measured, self.recorder.done


class Restorer:
    """Restores measured pictures.

    Args:
        model: the prior.
        solver: how it is sampled.
        run: where everything is written.
        seed: the run's.
        batch_size: restorations at once, at most. Where they take more memory than there is, it is halved.
        minutes: between two savings of the states of restorations in progress; 0 never saves them.
        progress: show a bar for the steps of each batch.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        solver: Solver,
        run: RunFolder,
        seed: int,
        batch_size: int = 1,
        minutes: float = 0.0,
        progress: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self._model, self._solver, self._run, self._seed = model, solver, run, seed
        self._minutes, self._progress = minutes, progress

    def restore(self, pictures: Sequence[MeasuredPicture]) -> None:
        """Restore each picture as often as is left to do, and write what comes out.

        A batch has pictures of one shape, and restorations that were interrupted after the same number of steps.
        """
        groups = defaultdict(list)
        for picture in pictures:
            for sample in self._run.samples_left(picture.name):
                restoration = self._begin(picture, sample)
                groups[restoration.group].append(restoration)
        waiting = list(groups.values())[::-1]
        while waiting:
            group = waiting.pop()
            batch, rest = group[: self.batch_size], group[self.batch_size :]
            again = self._attempt(batch)
            waiting += [part for part in (rest, again) if part]

    def _begin(self, picture: MeasuredPicture, sample: int) -> Restoration:
        name = self._run.name(picture.name, sample)
        generator = torch_stream(self._seed, picture.streams, f"solver {sample}", self._model.device)
        recorder = Recorder(
            self._run,
            name,
            self._solver.total_steps,
            lambda z: picture.shown(picture.crop(self._model.decode_first_stage(z))),
            generator,
        )
        if self._minutes:
            recorder.resume()
        return Restoration(picture, sample, recorder)

    def _attempt(self, batch: Sequence[Restoration]) -> list[Restoration]:
        """Restore a batch from where it stands, and write what came of it.

        Returns:
            Those to be taken up again: all that are not lost, where memory was short.
        """
        bar = ProgressBar() if self._progress else None
        with BatchRecorder([restoration.recorder for restoration in batch], self._minutes, bar) as watch:
            images = self._sample(batch, watch)
            for position, lost in watch.lost.items():
                own = batch[position]
                own.recorder.write_trace()
                self._run.fail(own.picture.name, [own.sample], ImageError(lost.reason, lost.step, position))
            others = [position for position in range(len(batch)) if position not in watch.lost]
            if images is None:
                watch.write_states()  # some may have to wait for others
                return [batch[position] for position in others]
            for position in others:
                self._finish(batch[position], images[position : position + 1])
            return []

    def _sample(self, batch: Sequence[Restoration], watch: BatchRecorder) -> Tensor | None:
        """Return a batch's images (B, C, H, W); None where memory was short, and fewer at once may do."""
        pictures, from_guess = [own.picture for own in batch], self._solver.settings.starts_from_guess
        problem = InverseProblem.stack([picture.problem(self._model, from_guess) for picture in pictures])
        generators = [own.recorder.generator for own in batch]
        label = self._solver.class_label if pictures[0].label is None else pictures[0].label
        solver = replace(self._solver, class_label=label)
        try:
            return restore(self._model, problem, solver, watch, generators, watch.rewind())
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
        finally:
            watch.share_time()
        # Only here is free what the batch took: the error held on to it.
        gc.collect()
        torch.cuda.empty_cache()
        self.batch_size = len(batch) // 2
        LOGGER.warning("out of memory with %d images at once: continuing with %d", len(batch), self.batch_size)
        return None

    def _finish(self, restoration: Restoration, image: Tensor) -> None:
        """Write a restoration, (1, C, *padded) in [-1, 1]."""
        picture, sample, recorder = restoration.picture, restoration.sample, restoration.recorder
        recorder.write_trace()
        image = picture.crop(image)
        self._run.write_restoration(picture.name, sample, **picture.pictures(), recon=picture.shown(image))
        # Only now: what it needs is slow to import, and the first sampling step should not wait for it.
        self._run.add_metrics(picture.name, sample, picture.outcome(image), recorder.passes(), recorder.seconds)
