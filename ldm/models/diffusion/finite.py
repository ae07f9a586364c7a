"""Watches a sampler for values that are not finite, which end the image that they are of."""

import math
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor

from ldm.models.diffusion.posterior import TraceEvent
from util.errors import ImageError


class FiniteWatch:
    """Finds the images of a batch that have values which are not finite, and tells of each once.

    Args:
        failed: is told of each, as an ImageError with its position; None raises it.

    Attributes:
        lost: their positions.
    """

    def __init__(self, failed: Callable[[ImageError], Any] | None = None) -> None:
        self.lost: set[int] = set()
        self._failed = failed or _raise

    def events(self, callback: Callable[[TraceEvent], Any] | None) -> Callable[[TraceEvent], None]:
        """Wrap a callback of trace events: after it, losses are looked at. Of a lost image it hears no more."""

        def event(event: TraceEvent) -> None:
            if event.sample in self.lost:
                return
            if callback is not None:
                callback(event)
            if not all(loss is None or math.isfinite(loss) for loss in (event.first_loss, event.last_loss)):
                self._lose(f"the loss of the {event.stage} stage", event.step, event.sample)

        return event

    def estimates(self, callback: Callable[[Tensor, int], Any] | None) -> Callable[[Tensor, int], None]:
        """Wrap a callback of latents (B, ...) and steps: before it, the latents are looked at."""

        def estimate(latents: Tensor, step: int) -> None:
            self.require(latents, "the latent", step)
            if callback is not None:
                callback(latents, step)

        return estimate

    def require(self, batch: Tensor, what: str, step: int, first: int = 0) -> None:
        """Look at values.

        Args:
            batch: (B, ...), of the images from position ``first`` on.
            what: what they are, for the message.
            step: the sampling step at which they came up.
        """
        for position, finite in enumerate(batch.isfinite().flatten(1).all(1).tolist(), first):
            if not finite and position not in self.lost:
                self._lose(what, step, position)

    def _lose(self, what: str, step: int, position: int) -> None:
        self.lost.add(position)
        self._failed(ImageError(f"{what} is not finite", step, position))


def _raise(error: ImageError) -> NoReturn:
    raise error
