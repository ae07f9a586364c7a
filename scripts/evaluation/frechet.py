"""The Fréchet distance of restorations from pictures of their kind, over features of a model's first stage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.pictures import to_model_range
from util.errors import UserError
from util.metrics import frechet_distance

AT_ONCE = 32


@dataclass(frozen=True)
class FeatureDistance:
    """The distance of sets of pictures from a reference, as Gaussians of features.

    A picture's features are mean and deviation of each channel of the first stage's latent, over what a mask dropped of
    it, in units of the reference's deviation. So restorations are judged by what had to be invented.

    Attributes:
        model: whose first stage is taken.
        reference: uint8 (N, H, W, 3).
    """

    model: LatentDiffusion
    reference: np.ndarray

    @cached_property
    def _latents(self) -> np.ndarray:
        return torch.cat([*encoded(self.model, self.reference)]).numpy()

    def __call__(self, pictures: np.ndarray, dropped: np.ndarray) -> float:
        """Return the distance of uint8 pictures (M, H, W, 3), M at least 2.

        The features of the reference's picture n are taken over what is dropped of picture n modulo M.

        Args:
            dropped: bool (M, H, W), true where a mask dropped a pixel; all of a picture where that is no whole cell of
                the latent.

        Raises:
            UserError: the pictures are not of the model's size.
        """
        if pictures.shape[1:] != self.reference.shape[1:]:
            size = f"{pictures.shape[2]}x{pictures.shape[1]}"
            raise UserError(f"--frechet: restorations of {size}: must be of the model's size, {self.model.resolution}")
        cells = self._cells(dropped)
        own = features(torch.cat([*encoded(self.model, pictures)]).numpy(), cells)
        there = features(self._latents, cells[np.arange(len(self._latents)) % len(cells)])
        return relative_distance(there, own)

    def _cells(self, dropped: np.ndarray) -> np.ndarray:
        """Return which cells of the latent are dropped: bool (M, h, w)."""
        factor = self.model.resolution // self._latents.shape[-1]
        shares = F.avg_pool2d(torch.from_numpy(dropped[:, None]).float(), factor)[:, 0].numpy()
        cells = shares == 1
        cells[~cells.any((1, 2))] = True
        return np.asarray(cells)


def encoded(model: LatentDiffusion, pictures: np.ndarray) -> Iterator[Tensor]:
    """Yield the latents of uint8 pictures (N, H, W, 3), some at a time: float32 (B, C, h, w)."""
    for first in range(0, len(pictures), AT_ONCE):
        images = to_model_range(pictures[first : first + AT_ONCE]).to(model.device)
        with torch.no_grad():
            latents = model.encode_mode(images).float().cpu()
        yield latents


def relative_distance(reference: np.ndarray, found: np.ndarray) -> float:
    """Return the Fréchet distance of features (N, F) and (M, F), in units of the reference's deviation."""
    deviation = reference.std(0)
    return frechet_distance(reference / deviation, found / deviation)


def features(latents: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return mean and deviation of each channel of latents (N, C, h, w) over bool cells (N, h, w): (N, 2 C)."""
    rows: Sequence[np.ndarray] = [latent[:, chosen] for latent, chosen in zip(latents, cells, strict=True)]
    return np.stack([np.concatenate([row.mean(1), row.std(1)]) for row in rows]).astype(np.float64)
