"""Encoder and decoder of the first-stage autoencoders (Esser et al., 2021; Rombach et al., 2022)."""

import itertools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import GroupNorm
from ldm.modules.sizes import Blocks, Channels, Factors, Flags, Side, each_level, widths
from ldm.util import read_params
from util.settings import BelowOne, Flag, Positive, Settings


class CoderSettings(Settings):
    """The shape of an encoder and its decoder: `ddconfig` of published files.

    Attributes:
        ch, ch_mult: channels of the first convolution, and factors of it for the channels of each level.
        num_res_blocks: residual blocks at each level of the encoder; the decoder has one more.
        resolution, attn_resolutions: attention follows the residual blocks of the levels whose side is named, for an
            image of side ``resolution``, whatever the input's size.
        attention_levels: the same as a flag for each level, in place of ``attn_resolutions``.
        mid_attention: attention between the two residual blocks at the lowest resolution.
        in_channels, out_ch, z_channels: channels of what is encoded, of what is decoded, and of the features.
        double_z: the encoder gives twice ``z_channels``: means and log-variances.
        resamp_with_conv: levels end in a convolution; without, in average pooling or nearest upsampling alone.
        norm_groups, norm_eps: of every GroupNorm.
    """

    ch: Channels
    ch_mult: Factors
    num_res_blocks: Blocks
    resolution: Side
    attn_resolutions: tuple[Side, ...] = ()
    attention_levels: Flags | None = None
    mid_attention: Flag = True
    in_channels: Channels = 3
    out_ch: Channels = 3
    z_channels: Channels
    double_z: Flag = True
    dropout: BelowOne = 0.0
    resamp_with_conv: Flag = True
    norm_groups: Channels = 32
    norm_eps: Positive = 1e-6

    def attention(self) -> list[bool]:
        """Whether each level has attention."""
        levels = len(self.ch_mult)
        if self.attention_levels is not None:
            return each_level(self.attention_levels, levels, "attention_levels")
        return [self.resolution >> level in self.attn_resolutions for level in range(levels)]


class NormSiLU(GroupNorm):
    """GroupNorm, then SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    """One row and column of zeros at the bottom and right, then a 3x3 convolution with stride two."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each behind GroupNorm and SiLU, added to the input."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0, eps: float = 1e-6, groups: int = 32):
        super().__init__()
        self.norm1 = NormSiLU(in_channels, eps, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = NormSiLU(out_channels, eps, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.dropout(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head residual self-attention over the positions of a feature map, with 1x1 convolutions."""

    def __init__(self, channels: int, eps: float = 1e-6, groups: int = 32):
        super().__init__()
        self.norm = GroupNorm(channels, eps, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = self.attend(q, k, v)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``softmax(q k^T / sqrt(C)) v`` for queries, keys and values (B, N, C)."""
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def _block(settings: CoderSettings, in_channels: int, out_channels: int) -> ResnetBlock:
    return ResnetBlock(in_channels, out_channels, settings.dropout, settings.norm_eps, settings.norm_groups)


def _attention(settings: CoderSettings, channels: int) -> AttnBlock:
    return AttnBlock(channels, settings.norm_eps, settings.norm_groups)


class Middle(nn.Module):
    """Attention between two residual blocks, at the lowest resolution."""

    def __init__(self, settings: CoderSettings, channels: int):
        super().__init__()
        self.block_1 = _block(settings, channels, channels)
        self.attn_1 = _attention(settings, channels) if settings.mid_attention else nn.Identity()
        self.block_2 = _block(settings, channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the settings ask for it."""

    def __init__(self, settings: CoderSettings, in_channels: int, out_channels: int, blocks: int, attention: bool):
        super().__init__()
        channels = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(_block(settings, a, b) for a, b in itertools.pairwise(channels))
        self.attn = nn.ModuleList(_attention(settings, out_channels) for _ in range(blocks if attention else 0))

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if self.attn:
                h = self.attn[i](h)
        return h


class DownLevel(Level):
    """A level of the encoder; all but the last end in half the resolution."""

    def __init__(self, settings: CoderSettings, in_channels: int, out_channels: int, attention: bool, last: bool):
        super().__init__(settings, in_channels, out_channels, settings.num_res_blocks, attention)
        self.downsample: nn.Module = nn.Identity()
        if not last:
            self.downsample = Downsample(out_channels) if settings.resamp_with_conv else nn.AvgPool2d(2)

    def forward(self, h: Tensor) -> Tensor:
        return self.downsample(super().forward(h))


class UpLevel(Level):
    """A level of the decoder; all but the last end in twice the resolution."""

    def __init__(self, settings: CoderSettings, in_channels: int, out_channels: int, attention: bool, last: bool):
        super().__init__(settings, in_channels, out_channels, settings.num_res_blocks + 1, attention)
        self.upsample: nn.Module = nn.Identity()
        if not last:
            self.upsample = Upsample(out_channels) if settings.resamp_with_conv else nn.Upsample(scale_factor=2)

    def forward(self, h: Tensor) -> Tensor:
        return self.upsample(super().forward(h))


class Encoder(nn.Module):
    """Images (B, in_channels, H, W) to features (B, z_channels or 2 z_channels, H/f, W/f), f = 2 ** (levels - 1).

    Keywords are those of `CoderSettings`.
    """

    def __init__(self, **params: Any):
        super().__init__()
        settings = read_params(CoderSettings, params, type(self))
        channels = widths(settings.ch, settings.ch_mult)
        self.conv_in = nn.Conv2d(settings.in_channels, settings.ch, 3, padding=1)
        self.down = nn.ModuleList()
        pairs, attention = itertools.pairwise([settings.ch, *channels]), settings.attention()
        for level, (width, out) in enumerate(pairs):
            last = level == len(channels) - 1
            self.down.append(DownLevel(settings, width, out, attention[level], last))
        self.mid = Middle(settings, channels[-1])
        self.norm_out = NormSiLU(channels[-1], settings.norm_eps, settings.norm_groups)
        features = 2 * settings.z_channels if settings.double_z else settings.z_channels
        self.conv_out = nn.Conv2d(channels[-1], features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out(self.mid(h)))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) to images (B, out_ch, f h, f w): the encoder's mirror, one block more a level.

    Keywords are those of `CoderSettings`.
    """

    def __init__(self, **params: Any):
        super().__init__()
        settings = read_params(CoderSettings, params, type(self))
        channels = widths(settings.ch, settings.ch_mult)
        self.conv_in = nn.Conv2d(settings.z_channels, channels[-1], 3, padding=1)
        self.mid = Middle(settings, channels[-1])
        levels: list[UpLevel] = []
        pairs, attention = itertools.pairwise([channels[-1], *reversed(channels)]), settings.attention()
        for level, (width, out) in zip(reversed(range(len(channels))), pairs, strict=True):
            levels.insert(0, UpLevel(settings, width, out, attention[level], last=level == 0))
        self.up = nn.ModuleList(levels)
        self.norm_out = NormSiLU(channels[0], settings.norm_eps, settings.norm_groups)
        self.conv_out = nn.Conv2d(channels[0], settings.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(self.norm_out(h))
