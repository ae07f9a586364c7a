"""Restores measured pictures several at a time, and writes what comes of each into the run's folder.

Each ends as it would alone: it has its own random stream, trace, state and outcome, and whatever befalls one of a batch
leaves the others as they are.
"""

import gc
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from ldm.models.diffusion.listeners import Listeners
from ldm.models.diffusion.posterior import InverseProblem
from ldm.models.diffusion.restarts import restore_best
from ldm.models.diffusion.solver import Solver
from ldm_inverse.measured_picture import MeasuredPicture
from util.errors import is_out_of_memory
from util.logger import LOGGER
from util.recorder import BatchRecorder, Recorder, Regroup
from util.run import RunFolder
from util.streams import torch_stream

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion


@dataclass
class Restoration:
    """One of the restorations of a picture, while it is in hand: ``sample`` is its number."""

    picture: MeasuredPicture
    sample: int
    recorder: Recorder

    @property
    def group(self) -> tuple[tuple[int, ...], int]:
        """What those of one batch have in common: the picture's shape, and the steps that are done."""
        return self.picture.shape, self.recorder.done


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
        restarts: runs of the solver for each restoration, the best of which is kept (`restore_best`).
    """

    def __init__(
        self,
        model: "LatentDiffusion",
        solver: Solver,
        run: RunFolder,
        seed: int,
        batch_size: int = 1,
        minutes: float = 0.0,
        progress: bool = False,
        restarts: int = 1,
    ) -> None:
        self.batch_size = batch_size
        self._model, self._solver, self._run, self._seed = model, solver, run, seed
        self._minutes, self._progress, self._restarts = minutes, progress, restarts

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
        steps = self._restarts * self._solver.steps
        recorder = Recorder(self._run, name, steps, lambda z: picture.crop(self._model.decode_first_stage(z)))
        if self._minutes:
            recorder.resume(self._generator(picture, sample))
        return Restoration(picture, sample, recorder)

    def _generator(self, picture: MeasuredPicture, sample: int) -> Generator:
        """The noise source of a restoration, as it is before the first step."""
        return torch_stream(self._seed, picture.streams, f"solver {sample}", self._model.device)

    def _attempt(self, batch: Sequence[Restoration]) -> list[Restoration]:
        """Restore a batch from where it stands, and write what came of it.

        Returns:
            Those to be taken up again: the others where some have failed, and all where memory was short.
        """
        with BatchRecorder([restoration.recorder for restoration in batch], self._minutes) as watch:
            images = self._sample(batch, watch)
            for position, error in watch.lost.items():
                batch[position].recorder.write_trace()
                self._run.fail(batch[position].picture.name, [batch[position].sample], error)
            others = [position for position in range(len(batch)) if position not in watch.lost]
            if images is None:
                watch.write_states()  # some may have to wait for others
                return [batch[position] for position in others]
            for position in others:
                self._finish(batch[position], images[position : position + 1])
            return []

    def _sample(self, batch: Sequence[Restoration], watch: BatchRecorder) -> Tensor | None:
        """Return a batch's images (B, 3, H, W); None when it came to nothing, as it has to be another one."""
        try:
            return self._solve(batch, watch)
        except Regroup:
            return None
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
        finally:
            watch.share_time()
        # Only here is free what the batch took: the error held on to it.
        gc.collect()
        torch.cuda.empty_cache()
        self.batch_size = len(batch) // 2
        LOGGER.warning("out of memory with %d images at once: going on with %d", len(batch), self.batch_size)
        return None

    def _solve(self, batch: Sequence[Restoration], watch: BatchRecorder) -> Tensor:
        pictures = [restoration.picture for restoration in batch]
        from_baseline = self._solver.settings.start < 1
        states = [restoration.recorder.rewind() for restoration in batch]
        return restore_best(
            self._solver,
            self._restarts,
            self._model,
            InverseProblem.stack([picture.problem(self._model, from_baseline) for picture in pictures]),
            (len(batch), 3, *pictures[0].padded),
            [self._generator(restoration.picture, restoration.sample) for restoration in batch],
            Listeners(watch.event, watch.estimate, watch.keep, watch.fail),
            self._progress,
            None if None in states else states,
        )

    def _finish(self, restoration: Restoration, image: Tensor) -> None:
        """Write a restoration, (1, 3, *padded) in [-1, 1]."""
        picture, sample, recorder = restoration.picture, restoration.sample, restoration.recorder
        recorder.write_trace()
        image = picture.crop(image)
        self._run.write_restoration(picture.name, sample, **picture.pictures(), recon=image)
        # Only now: what it needs is slow to import, and the first sampling step should not wait for it.
        self._run.add_metrics(picture.name, sample, picture.outcome(image), recorder.passes(), recorder.seconds)
