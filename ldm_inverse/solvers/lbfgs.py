"""L-BFGS with a strong Wolfe line search (Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7).

torch's own imports torch's compiler, which costs every process 160 MB and seconds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# A point to the value and gradient there.
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

DECREASE, CURVATURE = 1e-4, 0.9  # the constants of the Wolfe conditions, as the book has them for such directions
GRADIENT_TOLERANCE, CHANGE_TOLERANCE, LEAST_CURVATURE = 1e-7, 1e-9, 1e-10
MOST_TRIALS = 25  # of one line search
LEAST_GROWTH, LARGEST_GROWTH = 2.0, 10.0  # of the step, until a minimum is passed
MARGIN = 0.1  # share of a bracket that a trial keeps from its ends


@dataclass(frozen=True)
class Trial:
    """The objective a ``step`` along a direction: its value, its slope in that direction, and its gradient."""

    step: float
    value: float
    slope: float
    gradient: Tensor


class Step(NamedTuple):
    """A step that was taken, the change of the gradient over it, and their product."""

    moved: Tensor
    turned: Tensor
    curvature: float


def lbfgs(objective: Objective, x: Tensor, iterations: int) -> tuple[Tensor, str]:
    """Minimise from ``x``, in at most so many iterations; after 5/4 as many evaluations only a line search is ended.

    All steps are remembered, so it is for tens of iterations. It ends early where the gradient, the step or the change
    of the value is next to nothing.

    Returns:
        The point that was found, and why it ended: "limit" or "plateau".
    """
    value, gradient = objective(x)
    before, steps, evaluations = Trial(0.0, float(value), 0.0, gradient), list[Step](), 1
    for _ in range(iterations):
        direction = -times_inverse_hessian(before.gradient, steps)
        slope, norm = numbers((before.gradient * direction).sum(), torch.linalg.vector_norm(before.gradient))
        if not (slope < -CHANGE_TOLERANCE and norm > GRADIENT_TOLERANCE):
            return x, "plateau"
        start = Trial(0.0, before.value, slope, before.gradient)
        line = _Line(objective, x, direction)
        reached = line.search(start, 1.0 if steps else min(1.0, 1 / norm))
        evaluations += line.evaluations
        moved, turned = reached.step * direction, reached.gradient - before.gradient
        x = x + moved
        curvature, furthest = numbers((moved * turned).sum(), moved.abs().max())
        if curvature > LEAST_CURVATURE:
            steps.append(Step(moved, turned, curvature))
        if min(abs(reached.value - before.value), furthest) < CHANGE_TOLERANCE:
            return x, "plateau"
        if evaluations >= iterations * 5 // 4:
            break
        before = reached
    return x, "limit"


def numbers(*scalars: Tensor) -> list[float]:
    """Read numbers together: each reading makes a card wait."""
    return torch.stack(scalars).tolist()


def times_inverse_hessian(gradient: Tensor, steps: Sequence[Step]) -> Tensor:
    """The two-loop recursion (algorithm 7.4), over steps from the oldest to the latest."""
    result, weights = gradient.clone(), []
    for step in reversed(steps):
        weight = (step.moved * result).sum() / step.curvature
        result -= weight * step.turned
        weights.append(weight)
    if steps:
        result *= steps[-1].curvature / steps[-1].turned.square().sum()
    for step, weight in zip(steps, reversed(weights), strict=True):
        result += (weight - (step.turned * result).sum() / step.curvature) * step.moved
    return result


class _Line:
    """The objective along a direction from x, and how often it was evaluated."""

    def __init__(self, objective: Objective, x: Tensor, direction: Tensor):
        self.objective, self.x, self.direction = objective, x, direction
        self.evaluations = 0

    def at(self, step: float) -> Trial:
        """Evaluate the objective a step away."""
        self.evaluations += 1
        value, gradient = self.objective(self.x + step * self.direction)
        height, slope = numbers(value, (gradient * self.direction).sum())
        return Trial(step, height, slope, gradient)

    def search(self, start: Trial, step: float) -> Trial:
        """Return a trial that meets the strong Wolfe conditions, or the best one found (algorithm 3.5)."""
        before = start
        while self.evaluations < MOST_TRIALS:
            trial = self.at(step)
            if not _decreases(trial, start) or (before is not start and trial.value >= before.value):
                return self.zoom(start, before, trial)
            if abs(trial.slope) <= -CURVATURE * start.slope:
                return trial
            if trial.slope >= 0:
                return self.zoom(start, trial, before)
            step = min(max(_stationary(before, trial), LEAST_GROWTH * step), LARGEST_GROWTH * step)
            before = trial
        return before

    def zoom(self, start: Trial, low: Trial, high: Trial) -> Trial:
        """The same between two trials, of which ``low`` has the lower value and falls towards ``high`` (3.6)."""
        reach = float(self.direction.abs().max())
        while self.evaluations < MOST_TRIALS:
            left, right = sorted((low.step, high.step))
            width = right - left
            if width * reach < CHANGE_TOLERANCE:
                break
            step = _stationary(low, high)
            trial = self.at(min(max(step, left + MARGIN * width), right - MARGIN * width))
            if not _decreases(trial, start) or trial.value >= low.value:
                high = trial
                continue
            if abs(trial.slope) <= -CURVATURE * start.slope:
                return trial
            if trial.slope * (high.step - low.step) >= 0:
                high = low
            low = trial
        return low


def _decreases(trial: Trial, start: Trial) -> bool:
    """The first Wolfe condition; a value that is not finite does not meet it."""
    return trial.value <= start.value + DECREASE * trial.step * start.slope


def _stationary(a: Trial, b: Trial) -> float:
    """The minimum of the cubic with the values and slopes of two trials (equation 3.59); half-way, if it has none."""
    middle = (a.step + b.step) / 2
    if not (math.isfinite(a.value) and math.isfinite(b.value) and a.step != b.step):
        return middle
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    under_root = d1 * d1 - a.slope * b.slope
    if not under_root >= 0:
        return middle
    d2 = math.copysign(math.sqrt(under_root), b.step - a.step)
    divisor = b.slope - a.slope + 2 * d2
    return b.step - (b.step - a.step) * (b.slope + d2 - d1) / divisor if divisor else middle
