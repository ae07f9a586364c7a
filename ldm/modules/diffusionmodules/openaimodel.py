"""The UNet that predicts the noise in a latent (Dhariwal and Nichol, 2021; Rombach et al., 2022)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import AttentionBlock, SpatialTransformer
from ldm.modules.diffusionmodules.model import Upsample
from ldm.modules.diffusionmodules.util import GroupNorm, timestep_embedding, zero_module
from ldm.modules.sizes import MAX_BLOCKS, MAX_ENTRIES, check_channels, check_levels
from ldm.util import reject_unknown
from util.checks import whole_number


class Downsample(nn.Module):
    """A 3x3 convolution with stride two."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Residual block conditioned on the timestep embedding.

    ``resample`` is "up" or "down" for a block that also changes the resolution (``resblock_updown``), by nearest
    upsampling or average pooling between the first activation and the first convolution, and on the skip connection.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_scale_shift_norm: bool = False,
        resample: str | None = None,
    ):
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resample = resample
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, out_channels * (2 if use_scale_shift_norm else 1))
        )
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = conv(self._resample(act(norm(x))))
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(self._resample(x)) + h


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands the timestep embedding to its residual blocks and the context to its transformers."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """Noise prediction ``eps(x, t)``, with optional class labels and cross-attention context.

    Args:
        image_size: side of the latent the settings were written for; the network itself takes any size that
            ``2 ** (len(channel_mult) - 1)`` divides.
        attention_resolutions: downsampling factors at which attention follows each residual block.
        num_heads, num_head_channels: with ``num_head_channels`` given, heads = channels // num_head_channels; else
            ``num_heads`` heads.
        use_spatial_transformer: SpatialTransformer blocks (``transformer_depth``, ``context_dim``) for attention.
        num_classes: adds a learned class embedding; ``forward`` then needs ``y``.
        legacy, training_only: accepted because published settings name them; they change no number.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_classes: int | None = None,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        legacy: bool = True,
        **training_only: Any,
    ):
        super().__init__()
        reject_unknown(type(self), training_only)
        if num_heads == -1 and num_head_channels == -1:
            raise ValueError("UNetModel needs num_heads or num_head_channels")
        if use_spatial_transformer and context_dim is None:
            raise ValueError("use_spatial_transformer needs context_dim")
        check_channels(in_channels=in_channels, model_channels=model_channels, out_channels=out_channels)
        check_levels("channel_mult", channel_mult, model_channels)
        if num_head_channels == -1:
            check_channels(num_heads=num_heads)
        else:
            check_channels(num_head_channels=num_head_channels)
        if context_dim is not None:
            check_channels(context_dim=context_dim)
        if num_classes is not None:
            whole_number("num_classes", num_classes, 1, MAX_ENTRIES)
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.model_channels, self.num_classes = model_channels, num_classes
        self.downsampling = 2 ** (len(channel_mult) - 1)
        for name, count in (("num_res_blocks", num_res_blocks), ("transformer_depth", transformer_depth)):
            whole_number(name, count, 1, MAX_BLOCKS)
        emb_channels = 4 * model_channels

        def resblock(channels: int, out: int, resample: str | None = None) -> ResBlock:
            return ResBlock(channels, emb_channels, dropout, out, use_scale_shift_norm, resample)

        def attention(channels: int) -> nn.Module:
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            if use_spatial_transformer:
                return SpatialTransformer(channels, heads, channels // heads, transformer_depth, context_dim, dropout)
            return AttentionBlock(channels, heads, use_new_attention_order)

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb_channels)

        ch = model_channels
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(in_channels, ch, 3, padding=1))])
        skips, factor = [ch], 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers = [resblock(ch, mult * model_channels)]
                ch = mult * model_channels
                if factor in attention_resolutions:
                    layers.append(attention(ch))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skips.append(ch)
            if level < len(channel_mult) - 1:
                down = resblock(ch, ch, "down") if resblock_updown else Downsample(ch)
                self.input_blocks.append(TimestepEmbedSequential(down))
                skips.append(ch)
                factor *= 2

        self.middle_block = TimestepEmbedSequential(resblock(ch, ch), attention(ch), resblock(ch, ch))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [resblock(ch + skips.pop(), mult * model_channels)]
                ch = mult * model_channels
                if factor in attention_resolutions:
                    layers.append(attention(ch))
                if level > 0 and i == num_res_blocks:
                    layers.append(resblock(ch, ch, "up") if resblock_updown else Upsample(ch))
                    factor //= 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        self.out = nn.Sequential(GroupNorm(ch), nn.SiLU(), zero_module(nn.Conv2d(ch, out_channels, 3, padding=1)))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Predict the noise in x (B, in_channels, H, W) at ``timesteps`` (B,): (B, out_channels, H, W).

        ``context`` is (B, M, context_dim) for models with a spatial transformer, ``y`` (B,) class labels.

        Raises:
            ValueError: labels given to a model without classes, or missing for one with.
        """
        if (y is not None) != (self.num_classes is not None):
            raise ValueError("y must be given if and only if the model has num_classes")
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.time_embed[0].weight.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)
