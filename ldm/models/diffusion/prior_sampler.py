"""Samplers of the prior alone, behind a registry; those that are given a measurement have another (`posterior`)."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ldm.models.diffusion.prior import LatentPrior
from util.registry import Registry
from util.settings import Settings

# A prior, noise z (B, C, h, w), the number of steps and the sampler's settings, to clean latents (B, C, h, w).
Sample = Callable[[LatentPrior, Tensor, int, Any], Tensor]
Function = TypeVar("Function", bound=Sample)


class PriorSettings(Settings):
    """How a sampler of the prior samples. Derive your sampler's from it."""

    def evaluations(self, steps: int) -> int:
        """How often a run of ``steps`` steps evaluates the UNet (NFE)."""
        return steps


class PriorSampler(NamedTuple):
    """A sampler, and the class of its settings."""

    sample: Sample
    settings: type[PriorSettings]


PRIOR_SAMPLERS = Registry("sampler of the prior")


def get_prior_sampler(name: str) -> PriorSampler:
    """Return the sampler filed under ``name``.

    Raises:
        UserError: no such name; the message offers the nearest one and lists all.
    """
    return PRIOR_SAMPLERS.get(name)


def register_prior_sampler(name: str, settings: type[PriorSettings]) -> Callable[[Function], Function]:
    """Return a decorator that files a sampler (`Sample`) under ``name``, with the class of its settings."""

    def decorate(sample: Function) -> Function:
        PRIOR_SAMPLERS.register(name)(PriorSampler(sample, settings))
        return sample

    return decorate
