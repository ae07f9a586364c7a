"""Those that are told how a restoration goes on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm.models.diffusion.posterior import TraceEvent
from util.errors import ImageError
from util.sampler_state import SamplerState


@dataclass(frozen=True)
class Listeners:
    """What to call while a batch is restored; what is None is not called.

    Attributes:
        event: receives each stage of the sampler when it has ended.
        estimate: receives the estimates of the clean latents (B, C, h, w) and the step's number, after each.
        keep: receives the state of each image after each step; each needs a generator of its own.
        failed: is told of an image whose loss, latent or pixels are not finite, once. It may raise; else the others go
            on, and what is returned for that image has no meaning. Where it is None, the error is raised.
    """

    event: Callable[[TraceEvent], Any] | None = None
    estimate: Callable[[Tensor, int], Any] | None = None
    keep: Callable[[Sequence[SamplerState]], Any] | None = None
    failed: Callable[[ImageError], Any] | None = None


NOBODY = Listeners()
