"""DPM-Solver++ (Lu, Zhou, Bao, Chen, Li and Zhu, 2022, arXiv 2211.01095) and DPM-Solver (the same, NeurIPS 2022).

Between two noise levels the flow is linear but for the network, so only the network's output is approximated: by the
polynomial in ``lambda = log(alpha / sigma)`` through its values at as many levels as the order says. With h the step in
lambda, and c_k the polynomial's coefficients in ``u = (lambda - lambda_now) / h``,

    z_then = sigma_then / sigma_now z + alpha_then sum_k c_k I_k(h)       x0 predicted (DPM-Solver++, equation 9)
    z_then = alpha_then / alpha_now z + sigma_then sum_k c_k I_k(-h)      eps predicted (DPM-Solver, equation 3.4)

where ``I_k(h)`` is the integral of ``h exp((u - 1) h) u^k`` over [0, 1]. These are the papers' formulas before the
small terms of their coefficients are dropped (their "Taylor" variant).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

from torch import Tensor

from ldm.models.diffusion.levels import Level, LevelTable, Spacing, weighted_sum
from ldm.models.diffusion.prior import LatentPrior
from ldm.models.diffusion.prior_sampler import PriorSettings, register_prior_sampler
from util.settings import whole

Prediction = Literal["x0", "eps"]
Node = tuple[Level, Tensor]  # a level, and what the network predicts there

# Where a singlestep solver of each order looks between the ends of a step, as shares of it.
STAGES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


class DPMSolverSettings(PriorSettings):
    """How DPM-Solver++ steps.

    Attributes:
        order: of convergence, 1 to 3; order 1 is DDIM.
        method: ``multistep`` evaluates once a step (order 3: once more in all), ``singlestep`` as often as the order.
        spacing: what is even between the levels: ``log_snr``, ``time`` or ``quadratic`` (the square root of time).
        prediction: what is approximated: ``x0`` (DPM-Solver++) or ``eps`` (DPM-Solver).
    """

    order: Annotated[int, whole(1, 3)] = 2
    method: Literal["multistep", "singlestep"] = "multistep"
    spacing: Spacing = "time"
    prediction: Prediction = "x0"

    def evaluations(self, steps: int) -> int:
        """How often a run of ``steps`` steps evaluates the UNet (NFE)."""
        if self.method == "singlestep":
            return self.order * steps
        return steps + (self.order == 3)


@register_prior_sampler("dpm_solver", DPMSolverSettings)
def sample_dpm_solver(prior: LatentPrior, z: Tensor, steps: int, settings: DPMSolverSettings) -> Tensor:
    """From timestep T - 1 to 0 in ``steps`` steps."""
    table = LevelTable.of(prior.model.alphas_cumprod)
    solve = multistep if settings.method == "multistep" else singlestep
    predict = partial(predict_at, prior, settings.prediction)
    return solve(predict, table, z, table.spaced(steps, settings.spacing), settings.order, settings.prediction)


def predict_at(prior: LatentPrior, prediction: Prediction, z: Tensor, level: Level) -> Tensor:
    """The network's estimate for z at a level: the noise, or the clean latent that follows from it."""
    noise_estimate = prior.predict_noise(z, level.timestep)
    return noise_estimate if prediction == "eps" else (z - level.sigma * noise_estimate) / level.alpha


Predict = Callable[[Tensor, Level], Tensor]


def singlestep(
    predict: Predict, table: LevelTable, z: Tensor, levels: Sequence[Level], order: int, prediction: Prediction
) -> Tensor:
    """Each step on its own: the stages lead to the level whose value, with that at the start, decides the step."""
    for now, then in pairwise(levels):
        nodes = [(now, predict(z, now))]
        for share in STAGES[order]:
            stage = table.at_log_snr(now.log_snr + share * (then.log_snr - now.log_snr))
            nodes = [nodes[0], (stage, predict(integrate(z, now, stage, nodes, prediction), stage))]
        z = integrate(z, now, then, nodes, prediction)
    return z


def multistep(
    predict: Predict, table: LevelTable, z: Tensor, levels: Sequence[Level], order: int, prediction: Prediction
) -> Tensor:
    """Each step from the values at the starts of the last ``order`` steps.

    The first step is a singlestep one of an order less, which costs the whole run none of its order.
    """
    nodes: list[Node] = []  # the newest first
    for now, then in pairwise(levels):
        nodes = [(now, predict(z, now)), *nodes[: order - 1]]
        if len(nodes) == 1 and order == 3:
            stage = table.at_log_snr((now.log_snr + then.log_snr) / 2)
            middle = integrate(z, now, stage, nodes, prediction)
            z = integrate(z, now, then, [nodes[0], (stage, predict(middle, stage))], prediction)
        else:
            z = integrate(z, now, then, nodes, prediction)
    return z


def integrate(z: Tensor, now: Level, then: Level, nodes: Sequence[Node], prediction: Prediction) -> Tensor:
    """z at level ``now`` taken to ``then``, by the polynomial through the nodes, the first of which is at ``now``."""
    h = then.log_snr - now.log_snr
    coefficients = polynomial([((level.log_snr - now.log_snr) / h, value) for level, value in nodes])
    if prediction == "x0":
        weights = integrals(h, len(nodes))
        return then.sigma / now.sigma * z + then.alpha * weighted_sum(weights, coefficients)
    weights = integrals(-h, len(nodes))
    return then.alpha / now.alpha * z + then.sigma * weighted_sum(weights, coefficients)


def integrals(h: float, count: int) -> list[float]:
    """The first ``count`` of I_k(h), by parts: ``I_0 = 1 - exp(-h)``, ``I_k = 1 - k / h I_(k-1)``."""
    found = [-math.expm1(-h)]
    for k in range(1, count):
        found.append(1 - k / h * found[-1])
    return found


def polynomial(points: Sequence[tuple[float, Tensor]]) -> list[Tensor]:
    """Coefficients, of u^0 on, of the polynomial through up to three points (u, value), u being 0 at the first."""
    (_, f0), *others = points
    if not others:
        return [f0]
    u1, f1 = others[0]
    slope = (f1 - f0) / u1
    if len(others) == 1:
        return [f0, slope]
    u2, f2 = others[1]
    curvature = ((f2 - f1) / (u2 - u1) - slope) / u2
    return [f0, slope - u1 * curvature, curvature]
