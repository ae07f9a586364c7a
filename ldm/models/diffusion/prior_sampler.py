"""Samplers of the prior alone, behind a registry; those that are given a measurement have another (`posterior`)."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ldm.models.diffusion.checked_settings import CheckedSettings
from ldm.models.diffusion.prior import LatentPrior
from util.registry import Registry

# A prior, noise z (B, C, h, w), the number of steps and the sampler's settings, to clean latents (B, C, h, w).
Sample = Callable[[LatentPrior, Tensor, int, Any], Tensor]
Function = TypeVar("Function", bound=Sample)


class PriorSampler(NamedTuple):
    """A sampler, and the class of its settings, which has ``passes(steps)``: passes through the UNet in a run."""

    sample: Sample
    settings: type[CheckedSettings]


PRIOR_SAMPLERS = Registry("sampler of the prior")
get_prior_sampler: Callable[[str], PriorSampler] = PRIOR_SAMPLERS.get


def register_prior_sampler(name: str, settings: type[CheckedSettings]) -> Callable[[Function], Function]:
    """Return a decorator that files a sampler (`Sample`) under ``name``, with the class of its settings."""

    def decorate(sample: Function) -> Function:
        PRIOR_SAMPLERS.register(name)(PriorSampler(sample, settings))
        return sample

    return decorate
