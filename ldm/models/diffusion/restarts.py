"""Restarts: several runs from different noise, of which the one that explains the measurement best is kept."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from ldm.models.diffusion.listeners import NOBODY, Listeners
from ldm.models.diffusion.optimise import mean_squared_residual
from ldm.models.diffusion.posterior import InverseProblem
from ldm.models.diffusion.solver import Solver
from util.errors import ImageError
from util.sampler_state import SamplerState

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion


def restore_best(
    solver: Solver,
    restarts: int,
    model: "LatentDiffusion",
    problem: InverseProblem,
    shape: Sequence[int],
    generator: Generator | Sequence[Generator],
    listeners: Listeners = NOBODY,
    progress: bool = False,
    resume: Sequence[SamplerState] | None = None,
) -> Tensor:
    """Restore ``restarts`` times in a row, and return of each image (B, 3, H, W) the restoration that is nearest its
    measurement, by the mean squared residual.

    Where a measurement has several explanations far apart (phase retrieval), a run may end in a wrong one, which its
    residual tells. Runs that begin from a first guess take its equivalents in turn. Each restart goes on drawing from
    the same streams. Steps are counted on: the first of restart r is number ``r * solver.steps``, for the listeners and
    in the states alike.

    Arguments and exceptions are those of `Solver.restore`. An image that has failed in one restart has failed.
    """
    first, best = 0, None
    if resume is not None:
        first = (resume[0].done - 1) // solver.steps
        best = None if first == 0 else torch.cat([state.best for state in resume])
    for restart in range(first, restarts):
        before = _Before(restart * solver.steps, best)
        images = solver.restore(
            model,
            _begun_from(problem, restart),
            shape,
            generator,
            before.told(listeners),
            progress,
            None if resume is None else before.taken_off(resume),
        )
        best, resume = images if best is None else _nearer(problem, best, images), None
    return best


def _begun_from(problem: InverseProblem, restart: int) -> InverseProblem:
    """The problem with the restart's own first guess."""
    if problem.initial is None or problem.equivalents_fn is None:
        return problem
    guesses = problem.equivalents_fn(problem.initial)
    return replace(problem, initial=guesses[restart % len(guesses)])


def _nearer(problem: InverseProblem, a: Tensor, b: Tensor) -> Tensor:
    """Choose for each image between two (B, 3, H, W): the one with the smaller residual."""
    with torch.no_grad():
        of_a, of_b = (mean_squared_residual(problem.measurement, problem.predict(images)) for images in (a, b))
    return torch.where((of_b < of_a)[:, None, None, None], b, a)


class _Before:
    """What came before a restart: a number of steps, and the best images so far (None before the first has ended).

    Listeners are told of these too.
    """

    def __init__(self, steps: int, best: Tensor | None) -> None:
        self.steps, self.best = steps, best

    def told(self, listeners: Listeners) -> Listeners:
        """Listeners for the restart alone, which hand on to these what they hear."""
        event, estimate, keep, failed = listeners.event, listeners.estimate, listeners.keep, listeners.failed
        return Listeners(
            event and (lambda found: event(replace(found, step=found.step + self.steps))),
            estimate and (lambda latents, step: estimate(latents, step + self.steps)),
            keep and (lambda states: keep(self._added(states))),
            failed and (lambda error: failed(ImageError(error.reason, error.step + self.steps, error.sample))),
        )

    def _added(self, states: Sequence[SamplerState]) -> list[SamplerState]:
        best = [None] * len(states) if self.best is None else self.best.split(1)
        return [state._replace(done=state.done + self.steps, best=b) for state, b in zip(states, best, strict=True)]

    def taken_off(self, states: Sequence[SamplerState]) -> list[SamplerState]:
        """The states as the solver knows them, with the steps of this restart alone."""
        return [state._replace(done=state.done - self.steps, best=None) for state in states]
