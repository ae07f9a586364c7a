"""Encoder and decoder of the first-stage autoencoders (Esser et al., 2021; Rombach et al., 2022)."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import one_head_attention
from ldm.modules.diffusionmodules.util import GroupNorm
from ldm.modules.fast_convolution import UPSAMPLING, Method, convolve, convolve_directly, is_half, pays, winograd
from ldm.modules.norm_silu import norm_silu
from ldm.modules.recompute import run
from ldm.modules.sizes import MAX_BLOCKS, MAX_SIDE, check_channels, check_levels
from util.checks import whole_number

# Latent positions of an image that occupies a processor and its caches by itself: several at once would take longer.
ALONE = 64 * 64


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(channels, eps=1e-6)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the size."""

    frozen = False
    method: Method | None = None

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def freeze(self, dtype: torch.dtype) -> None:
        """From now on compute by fewer multiplications where that pays, and keep nothing for a gradient of the weights.

        ``dtype`` is the number format that the convolution will be computed in.
        """
        self.frozen = True
        if pays(self, dtype):
            self.method = winograd(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.method is not None:
            return convolve(x, self.weight, self.bias, self.method)
        if self.frozen:
            return convolve_directly(x, self.weight, self.bias)
        return super().forward(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution."""

    frozen = False
    method: Method | None = None

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.register_buffer("folded", None, persistent=False)

    def freeze(self, dtype: torch.dtype) -> None:
        """As `Conv3x3.freeze`; on a processor both are done at once.

        Of many channels by a quarter of the multiplications. Of few by 4/9: taps that fall on the same pixel before
        upsampling are added up beforehand, and what remains of the two is a transposed convolution of stride two, whose
        4x4 kernel is the 3x3 one spread by a 2x2 box.
        """
        self.frozen = True
        if pays(self.conv, dtype, upsampling=True):
            self.method = UPSAMPLING
        elif self.conv.weight.device.type == "cpu":
            taps = self.conv.weight.detach().flip(2, 3).transpose(0, 1)
            self.folded = sum(F.pad(taps, (right, 1 - right, down, 1 - down)) for right in (0, 1) for down in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.method is not None:
            return convolve(x, self.conv.weight, self.conv.bias, self.method)
        if self.folded is not None:
            return convolve_directly(x, self.folded, self.conv.bias, transposed=True)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return convolve_directly(x, self.conv.weight, self.conv.bias) if self.frozen else self.conv(x)


class Downsample(nn.Module):
    """One row and column of zeros at the bottom and right, then a 3x3 convolution with stride two."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each behind GroupNorm and SiLU, added to the input."""

    recompute_activations = recompute_block = False

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def _activated(self, x: Tensor) -> Tensor:
        """What the second convolution, which keeps nothing once it is frozen, is given."""
        h = self.conv1(norm_silu(x, self.norm1, self.recompute_activations))
        return self.dropout(norm_silu(h, self.norm2, self.recompute_activations))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(run(self._activated, x, recompute=self.recompute_block))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Single-head residual self-attention over the positions of a feature map, with 1x1 convolutions."""

    recompute_activations = recompute_block = False

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def _attended(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        # In half precision the scores are small enough to keep.
        out = run(one_head_attention, q, k, v, recompute=self.recompute_activations and not is_half(q.dtype))
        return self.proj_out(out.transpose(1, 2).reshape(x.shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + run(self._attended, x, recompute=self.recompute_block)


class _Middle(nn.Module):
    """Attention between two residual blocks, at the lowest resolution."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class _Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the settings ask for it."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, dropout: float):
        super().__init__()
        whole_number("num_res_blocks", blocks, 1, MAX_BLOCKS)
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(blocks if attention else 0))

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if self.attn:
                h = self.attn[i](h)
        return h


class Encoder(nn.Module):
    """Images (B, in_channels, H, W) to features (B, z_channels or 2 z_channels, H/f, W/f), f = 2 ** (levels - 1).

    ``resolution`` is nominal: it places attention (at sides named in ``attn_resolutions``) whatever the input's size.
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        dropout: float = 0.0,
        out_ch: int | None = None,
    ):
        super().__init__()
        check_channels(ch=ch, in_channels=in_channels, z_channels=z_channels)
        check_levels("ch_mult", ch_mult, ch)
        whole_number("resolution", resolution, 1, MAX_SIDE)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = ch
        for i, mult in enumerate(ch_mult):
            level = _Level(width, ch * mult, num_res_blocks, resolution >> i in attn_resolutions, dropout)
            width = ch * mult
            if i < len(ch_mult) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = _Middle(width, dropout)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        h = self.mid(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) to images (B, out_ch, f h, f w): the encoder's mirror, one block more a level."""

    recompute_activations = False

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        z_channels: int,
        dropout: float = 0.0,
        in_channels: int | None = None,
        double_z: bool | None = None,
    ):
        super().__init__()
        check_channels(ch=ch, out_ch=out_ch, z_channels=z_channels)
        check_levels("ch_mult", ch_mult, ch)
        whole_number("resolution", resolution, 1, MAX_SIDE)
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = _Middle(width, dropout)
        levels = []
        for i, mult in reversed(list(enumerate(ch_mult))):
            level = _Level(width, ch * mult, num_res_blocks + 1, resolution >> i in attn_resolutions, dropout)
            width = ch * mult
            if i > 0:
                level.upsample = Upsample(width)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(width)
        self.conv_out = Conv3x3(width, out_ch)

    def recompute(self, activations: bool, blocks: bool) -> None:
        """Trade time for memory, with the same results to the last bit; for frozen weights and without dropout.

        Args:
            activations: keep the inputs of normalisations and attention for the gradient, and compute what follows
                again: a third of the memory for hardly any time.
            blocks: keep only what goes from block to block, and compute the blocks again.
        """
        self.recompute_activations = activations
        for part in self.modules():
            if isinstance(part, ResnetBlock | AttnBlock):
                part.recompute_activations, part.recompute_block = activations, blocks

    def forward(self, z: Tensor) -> Tensor:
        if z.device.type == "cpu" and len(z) > 1 and z[0, 0].numel() >= ALONE:
            return torch.cat([self(one) for one in z.split(1)])
        h = self.conv_in(z)
        h = self.mid(h)
        for level in reversed(self.up):
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(norm_silu(h, self.norm_out, self.recompute_activations))
