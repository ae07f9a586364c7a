"""Pictures larger than the model, whose networks see them in overlapping tiles."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.models.diffusion.ddpm import LatentDiffusion
from util.errors import UserError

Window = tuple[int, int]  # first and behind the last


class TiledModel(LatentDiffusion):
    """A model that denoises, decodes and encodes in overlapping tiles, and blends what comes out.

    All that is outside the networks, and so the sampler, has the whole picture: the blended clean estimate is fitted to
    one measurement of it, and a blur goes across the tiles' borders (Bar-Tal, Yariv, Lipman and Dekel, MultiDiffusion,
    ICML 2023, blends so). Between two tiles the weights change linearly over their overlap. Tiles are decoded again for
    their gradient, one after the other, so that the memory of the networks is that of a tile. A pass over all tiles
    counts as one.

    Args:
        model: whose networks these are; they are shared.
        side: of a tile, in pixels, a multiple of what divides the model's sides; its training size as a rule.
        overlap: of neighbouring tiles, in pixels, below ``side``, a multiple of the first stage's factor.

    Raises:
        UserError: the model cannot have such tiles.
    """

    def __init__(self, model: LatentDiffusion, side: int, overlap: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(model.__dict__)
        self.factor = model.first_stage_model.downsampling
        if side % model.multiple or overlap % self.factor or not 0 <= overlap < side:
            raise UserError(
                f"tiles of {side} pixels that overlap by {overlap} do not fit the model: the side must be a multiple "
                f"of {model.multiple}, the overlap one of {self.factor} and below the side"
            )
        self.side, self.overlap = side // self.factor, overlap // self.factor  # of latents

    def differentiable_apply_model(self, x_noisy: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        apply = super().differentiable_apply_model
        noise = self._blended(x_noisy, lambda tile: apply(tile, t, cond), 1, 1)
        self.evaluations.count_denoising(noise)
        return noise

    def differentiable_decode_first_stage(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        decode = super().differentiable_decode_first_stage
        image = self._blended(z, lambda tile: decode(tile, force_not_quantize), 1, self.factor)
        self.evaluations.count_decoding(image)
        return image

    def encode_mode(self, x: Tensor) -> Tensor:
        latent = self._blended(x, super().encode_mode, self.factor, 1)
        self.evaluations.count_encoding(latent)
        return latent

    def _blended(self, x: Tensor, network: Callable[[Tensor], Tensor], into: int, out_of: int) -> Tensor:
        """The outputs of a network for the tiles of x (B, C, H, W), blended.

        ``into`` and ``out_of`` are the pixels of its input and its output for each of a latent's.
        """

        def uncounted(tile: Tensor) -> Tensor:
            with self.evaluations.counting_for(()):
                return network(tile)

        height, width = (side // into for side in x.shape[-2:])
        total, weights = None, x.new_zeros(height * out_of, width * out_of)
        for rows in windows(height, self.side, self.overlap):
            for columns in windows(width, self.side, self.overlap):
                tile = x[..., _scaled(rows, into), _scaled(columns, into)]
                differentiable = torch.is_grad_enabled() and tile.requires_grad
                out = checkpoint(uncounted, tile, use_reentrant=False) if differentiable else uncounted(tile)
                there = _scaled(rows, out_of), _scaled(columns, out_of)
                weight = ramp(rows, height, self.overlap, out_of).to(out)[:, None]
                weight = weight * ramp(columns, width, self.overlap, out_of).to(out)
                weights[there] += weight
                if total is None:
                    total = out.new_zeros(*out.shape[:2], *weights.shape)
                entries = (slice(None), slice(None), *there)
                total[entries] = total[entries] + weight * out
        assert total is not None  # there is a tile at least
        return total / weights


def tiled(model: LatentDiffusion, tiles: tuple[int, int] | None) -> LatentDiffusion:
    """Return a model with tiles of a side and an overlap in pixels; the model itself where there are to be none.

    Raises:
        UserError: as `TiledModel`.
    """
    return model if tiles is None else TiledModel(model, *tiles)


def windows(length: int, side: int, overlap: int) -> Iterator[Window]:
    """Where the tiles lie along a side of ``length``: every ``side - overlap``, and the last at the end."""
    start = 0
    while start + side < length:
        yield start, start + side
        start += side - overlap
    yield max(length - side, 0), length


def ramp(window: Window, length: int, overlap: int, scale: int) -> Tensor:
    """The weights of a tile along one side, ``scale`` pixels for each of its entries: they fall linearly towards a
    neighbour, over the overlap, and stay above 0."""
    start, stop = window
    position = torch.arange((stop - start) * scale, dtype=torch.float64) + 0.5
    weight = torch.ones_like(position)
    if start > 0 and overlap:
        weight = torch.minimum(weight, position / (overlap * scale))
    if stop < length and overlap:
        weight = torch.minimum(weight, position.flip(0) / (overlap * scale))
    return weight


def _scaled(window: Window, scale: int) -> slice:
    return slice(window[0] * scale, window[1] * scale)
