"""How often the networks run for each image, counted where they run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor


class Evaluations(NamedTuple):
    """How often the networks ran for one image.

    Attributes:
        unet: forward passes of the UNet; classifier-free guidance doubles the batch of each.
        decoder_forward: forward passes of the first stage's decoder.
        decoder_backward: how many of these a gradient went back through.
        unet_backward: how many of the UNet's a gradient went back through.
        encoder_forward: forward passes of the first stage's encoder.
        encoder_backward: how many of these a gradient went back through.
    """

    unet: int = 0
    decoder_forward: int = 0
    decoder_backward: int = 0
    unet_backward: int = 0
    encoder_forward: int = 0
    encoder_backward: int = 0

    def since(self, before: "Evaluations") -> "Evaluations":
        """Those that were not there before."""
        return Evaluations(*(now - then for now, then in zip(self, before, strict=True)))


class EvaluationCounter:
    """Counts evaluations of a model's networks by the position of each image in the run's batch."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {kind: Counter() for kind in Evaluations._fields}
        self._images: Sequence[int] | None = None

    @contextmanager
    def counting_for(self, images: Sequence[int]) -> Iterator[None]:
        """Inside, what runs is for these images of the run's batch; outside, for as many as there are in a tensor."""
        outer, self._images = self._images, images
        try:
            yield
        finally:
            self._images = outer

    def count_denoising(self, noise: Tensor) -> None:
        """Count the UNet's forward pass that led to noise estimates (B, ...), and the backward pass if there is one."""
        self._count("unet", "unet_backward", noise)

    def count_decoding(self, image: Tensor) -> None:
        """Count the decoder's forward pass that led to images (B, ...), and the backward pass when there is one."""
        self._count("decoder_forward", "decoder_backward", image)

    def count_encoding(self, latent: Tensor) -> None:
        """Count the encoder's forward pass that led to latents (B, ...), and the backward pass when there is one."""
        self._count("encoder_forward", "encoder_backward", latent)

    def _count(self, forward: str, backward: str, out: Tensor) -> None:
        images = self.images_of(out)
        self._counts[forward].update(images)
        if out.requires_grad:
            out.register_hook(lambda _: self._counts[backward].update(images))

    def of(self, image: int) -> Evaluations:
        """All evaluations so far for the image at a position in the batch."""
        return Evaluations(*(counts[image] for counts in self._counts.values()))

    def images(self) -> set[int]:
        """The positions that evaluations have been counted for."""
        return set().union(*self._counts.values())

    def images_of(self, batch: Tensor) -> Sequence[int]:
        """The positions in the run's batch of the images of a tensor (B, ...)."""
        return range(len(batch)) if self._images is None else self._images


def counter_of(model: Any) -> EvaluationCounter:
    """A model's counter; one that stays at zero where the model has none."""
    return getattr(model, "evaluations", None) or EvaluationCounter()
