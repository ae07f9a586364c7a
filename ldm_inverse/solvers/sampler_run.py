"""One run of a sampler: it counts the steps and tells the observer of them."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ldm.models.diffusion.evaluations import EvaluationCounter, Evaluations
from ldm.models.diffusion.prior import DDIMSchedule
from ldm_inverse.solvers.observer import (
    Event,
    Finished,
    Iterated,
    Lost,
    Observer,
    StageEnded,
    StageName,
    Started,
    State,
    StepEnded,
)
from ldm_inverse.solvers.optimise import IterationCallback, Minimum
from ldm_inverse.solvers.problem import InverseProblem


@dataclass(frozen=True)
class Before:
    """The results of earlier restarts.

    Attributes:
        steps: how many they took.
        best: the best images of them, (B, C, H, W); None where there were none.
        lost: the images that ended in them.
    """

    steps: int = 0
    best: Tensor | None = None
    lost: Mapping[int, Lost] = field(default_factory=dict)


class SamplerRun:
    """Counts the steps of a run over a batch of images, and tells its observer of it.

    Values that are not finite end their image: it is told as lost, once, and nothing more is told of it. When all are
    lost, no step is left to do.

    Args:
        schedule: the steps of the run.
        problem: what is solved, of ``batch`` images.
        batch: how many images are sampled.
        observer: is told of the run; None: nothing is told, and nothing is looked at.
        passes: counts the passes of the model that is sampled.
        done: steps that are done already: the run begins after them.
        before: what earlier restarts have led to.

    Attributes:
        lost: what ended images, by their position in the batch.
    """

    def __init__(
        self,
        schedule: DDIMSchedule,
        problem: InverseProblem,
        batch: int,
        observer: Observer | None = None,
        passes: EvaluationCounter | None = None,
        done: int = 0,
        before: Before | None = None,
    ) -> None:
        self.schedule, self.problem, self.batch, self.done = schedule, problem, batch, done
        self._observer, self._passes, self._before = observer, passes or EvaluationCounter(), before or Before()
        self.lost: dict[int, Lost] = dict(self._before.lost)
        self._clock = time.perf_counter()
        self._spent = {sample: self._passes.of(sample) for sample in self._passes.images()}

    def _tell(self, event: Event) -> None:
        if self._observer is not None:
            with self._passes.counting_for(()):  # what is decoded to look at does not count
                self._observer(event)

    def steps(self, first_index: int | None = None) -> Iterator[tuple[int, int]]:
        """(step, index) of each step: 0 .. S-1 and S-1 .. 0; those before ``first_index``, or done, are left out."""
        total = len(self.schedule)
        first = max(self.done, 0 if first_index is None else total - 1 - first_index)
        self._tell(Started(self._before.steps + first, total - first))
        for step in range(first, total):
            if len(self.lost) == self.batch:
                return
            yield step, total - 1 - step

    def stepped(self, step: int, norm: Tensor | None = None) -> None:
        """Tell of a step of all images; ``norm``: of the residual whose gradient the step took (one, or (B,))."""
        if self._observer is None:  # reading the norm waits for the device: only where someone looks
            return
        if norm is None:
            self._stage_ended(step, "ddim", {sample: {} for sample in range(self.batch)})
            return
        norms = norm.detach().flatten().expand(self.batch).tolist()
        floors = self.problem.noise_levels(self.batch)
        # Noise of unknown level is noise that depends on the signal: its norm is weighted.
        losses = [
            () if floor is None else (value**2 / self.problem.entries,)
            for value, floor in zip(norms, floors, strict=True)
        ]
        about = [{"norm": value, "losses": own} for value, own in zip(norms, losses, strict=True)]
        self._stage_ended(step, "soft", dict(enumerate(about)))

    def optimised(self, step: int, stage: StageName, minimum: Minimum, first: int = 0) -> None:
        """Tell of an optimisation of the images from position ``first`` on."""
        found = zip(minimum.losses, minimum.targets, minimum.stops, strict=True)
        about = [{"losses": losses, "target": target, "stop": stop} for losses, target, stop in found]
        self._stage_ended(step, stage, dict(enumerate(about, first)))

    def _stage_ended(self, step: int, stage: StageName, samples: Mapping[int, Mapping[str, Any]]) -> None:
        now = time.perf_counter()
        seconds, self._clock = (now - self._clock) / len(samples), now
        timestep = self.schedule.timesteps[-1 - step] if step < len(self.schedule) else 0
        levels = self.problem.noise_levels(self.batch)
        for sample, fields in samples.items():
            if self._observer is None or sample in self.lost:
                continue
            floor = None if levels[sample] is None else levels[sample] ** 2
            known = StageEnded(self._before.steps + step, timestep, stage, sample, noise_floor=floor, seconds=seconds)
            event = replace(known, evaluations=self._passes_of(sample), **fields)
            self._tell(event)
            if not all(loss is None or math.isfinite(loss) for loss in (event.first_loss, event.last_loss)):
                self._lose(sample, step, f"the loss of the {stage} stage")

    def _passes_of(self, sample: int) -> Evaluations:
        """The networks' passes for an image since the event before."""
        before, self._spent[sample] = self._spent.get(sample, Evaluations()), self._passes.of(sample)
        return self._spent[sample].since(before)

    def follow(self, stage: StageName, limit: int, target: float | None) -> IterationCallback | None:
        """Return the callback that tells of an optimisation, for `minimise`; None where nobody looks."""
        if self._observer is None:
            return None
        return lambda iteration, losses: self._tell(Iterated(stage, iteration, limit, losses, target))

    def finished(self, step: int, z: Tensor, x0: Tensor) -> None:
        """Tell of the end of a step, with its latents and its estimate of the clean latents (B, C, h, w)."""
        if self._observer is None:
            return
        self.require(x0, "the latent", step)
        step += self._before.steps
        self._tell(StepEnded(step, x0, State(step + 1, z, self._before.best)))

    def require(self, batch: Tensor, name: str, step: int, first: int = 0) -> None:
        """Lose the images whose values are not finite.

        Args:
            batch: (B, ...), of the images from position ``first`` on.
            name: of the values, for the message.
            step: the sampling step at which they came up.
        """
        for position, finite in enumerate(batch.isfinite().flatten(1).all(1).tolist(), first):
            if not finite and position not in self.lost:
                self._lose(position, step, name)

    def _lose(self, sample: int, step: int, name: str) -> None:
        self.lost[sample] = Lost(sample, self._before.steps + step, f"{name} is not finite")
        self._tell(self.lost[sample])

    def close(self) -> None:
        """Tell that the run has ended."""
        self._tell(Finished())
