"""Posterior samplers by name."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor

from ldm_inverse.solvers.settings import SamplerSettings
from util.registry import Registry

Function = TypeVar("Function", bound=Callable[..., Tensor])


class Sampler(NamedTuple):
    """A sampler that explains a measurement.

    Attributes:
        sample: LatentPrior, InverseProblem, noise z (B, C, h, w), settings and `SamplerRun`, to the restored latents;
            None where the result is the first guess itself.
        settings: the class of its settings.
    """

    sample: Callable[..., Tensor] | None
    settings: type[SamplerSettings]


POSTERIOR_SAMPLERS = Registry("sampler")


def get_sampler(name: str) -> Sampler:
    """Return the sampler filed under ``name``.

    Raises:
        UserError: no such name; the message offers the nearest one and lists all.
    """
    return POSTERIOR_SAMPLERS.get(name)


def register_sampler(name: str, settings: type[SamplerSettings] = SamplerSettings) -> Callable[[Function], Function]:
    """Return a decorator that files a sampler's function (`Sampler.sample`) under ``name``, with its settings' class.

    Task files and the command line then have a group ``conditioning.<name>`` of these settings.
    """

    def decorate(sample: Function) -> Function:
        POSTERIOR_SAMPLERS.register(name)(Sampler(sample, settings))
        return sample

    return decorate
