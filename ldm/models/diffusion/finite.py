"""Watches a sampler for values that are not finite, which end the image that they are of."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ldm.models.diffusion.posterior import TraceEvent
from util.errors import ImageError


def finite_events(callback: Callable[[TraceEvent], Any] | None) -> Callable[[TraceEvent], None]:
    """Wrap a callback of trace events: after it, a loss that is not finite raises ImageError."""

    def event(event: TraceEvent) -> None:
        if callback is not None:
            callback(event)
        if not all(loss is None or math.isfinite(loss) for loss in (event.first_loss, event.last_loss)):
            raise ImageError(f"the loss of the {event.stage} stage is not finite", event.step)

    return event


def finite_estimates(callback: Callable[[Tensor, int], Any] | None) -> Callable[[Tensor, int], None]:
    """Wrap a callback of latents and steps: before it, a latent that is not finite raises ImageError."""

    def estimate(latent: Tensor, step: int) -> None:
        require_finite(latent, "latent", step)
        if callback is not None:
            callback(latent, step)

    return estimate


def require_finite(tensor: Tensor, what: str, step: int) -> None:
    """Raise ImageError when an entry is not finite.

    Args:
        tensor: the values.
        what: what they are, for the message.
        step: the sampling step at which they came up.
    """
    if not tensor.isfinite().all():
        raise ImageError(f"the {what} is not finite", step)
