"""PLMS, pseudo linear multistep sampling (Liu, Ren, Lin and Zhao, Pseudo Numerical Methods for Diffusion Models on
Manifolds, ICLR 2022)."""

from itertools import pairwise

from torch import Tensor

from ldm.models.diffusion.levels import Level, LevelTable, transfer, weighted_sum
from ldm.models.diffusion.prior import LatentPrior
from ldm.models.diffusion.prior_sampler import PriorSettings, register_prior_sampler

WARM_UP = 3  # steps by pseudo Runge-Kutta, for which there are not four estimates yet
ADAMS_BASHFORTH = (55 / 24, -59 / 24, 37 / 24, -9 / 24)  # fourth order; the newest estimate first


class PLMSSettings(PriorSettings):
    """PLMS has no settings."""

    def evaluations(self, steps: int) -> int:
        """How often a run of ``steps`` steps evaluates the UNet (NFE)."""
        return steps + 3 * min(steps, WARM_UP)


@register_prior_sampler("plms", PLMSSettings)
def sample_plms(prior: LatentPrior, z: Tensor, steps: int, settings: PLMSSettings) -> Tensor:
    """The paper's algorithm 2 (F-PNDM): the first three steps take four evaluations each, the others one."""
    table = LevelTable.of(prior.model.alphas_cumprod)
    estimates: list[Tensor] = []  # of the noise at the start of each step, the newest first
    for step, (now, then) in enumerate(pairwise(table.spaced(steps, "time"))):
        estimates = [prior.predict_noise(z, now.timestep), *estimates[:3]]
        if step < WARM_UP:
            estimate = runge_kutta(prior, z, estimates[0], now, table.at((now.timestep + then.timestep) / 2), then)
        else:
            estimate = weighted_sum(ADAMS_BASHFORTH, estimates)
        z = transfer(z, estimate, now, then)
    return z


def runge_kutta(prior: LatentPrior, z: Tensor, e1: Tensor, now: Level, middle: Level, then: Level) -> Tensor:
    """The noise estimate of a pseudo Runge-Kutta step (the paper's equation 13), ``e1`` being that at its start."""
    e2 = prior.predict_noise(transfer(z, e1, now, middle), middle.timestep)
    e3 = prior.predict_noise(transfer(z, e2, now, middle), middle.timestep)
    e4 = prior.predict_noise(transfer(z, e3, now, then), then.timestep)
    return (e1 + 2 * e2 + 2 * e3 + e4) / 6
