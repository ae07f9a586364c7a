"""The UNet that predicts the noise in a latent (Dhariwal and Nichol, 2021; Rombach et al., 2022)."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import AttentionBlock, SpatialTransformer
from ldm.modules.diffusionmodules.model import Upsample
from ldm.modules.diffusionmodules.util import GroupNorm, timestep_embedding, zero_module
from ldm.modules.sizes import Blocks, Channels, Entries, Factors, Flags, Heads, Levels, Side, each_level, widths
from ldm.util import read_params
from util.errors import UserError
from util.settings import BelowOne, Flag, Number, Positive, Settings, whole


class UNetSettings(Settings):
    """The shape of a UNet. The last group of attributes is not of CompVis: other trainers' networks have them.

    Attributes:
        image_size: side of the latent the settings were written for; the network itself takes any size that
            ``2 ** (len(channel_mult) - 1)`` divides.
        in_channels, out_channels: of the latents (with what is concatenated to them), and of the prediction.
        model_channels, channel_mult: channels of the first convolution, and factors of it for those of each level.
        num_res_blocks: residual blocks at each level of the descending half; the ascending half has one more.
        attention_resolutions: downsampling factors at which attention follows each residual block.
        num_heads, num_head_channels: with ``num_head_channels`` given, heads = channels // num_head_channels; else
            ``num_heads`` heads. One for all levels, or one for each; the middle is as the last level.
        use_scale_shift_norm: the timestep scales and shifts the second norm of a block, instead of being added.
        resblock_updown: residual blocks change the resolution; else convolutions, or with ``conv_resample`` false
            average pooling and nearest upsampling alone.
        use_new_attention_order: see `AttentionBlock`.
        use_spatial_transformer: SpatialTransformer blocks (``transformer_depth``, ``context_dim``) for attention.
        num_classes: adds a learned class embedding; ``forward`` then needs ``y``.
        legacy: accepted because published settings name it; it changes no number.

        attention_levels: a flag for each level, in place of ``attention_resolutions``.
        mid_attention, mid_attention_norm: attention in the middle, and a norm before it.
        norm_groups, norm_eps: of every GroupNorm (a SpatialTransformer's has its own eps).
        downsample_padding: 1; or 0: a row and a column of zeros at the bottom and right only.
        frequency_shift: of the timestep embedding, see `timestep_embedding`.
    """

    image_size: Side
    in_channels: Channels
    model_channels: Channels
    out_channels: Channels
    num_res_blocks: Blocks | Levels[Blocks]
    attention_resolutions: tuple[Side, ...] = ()
    dropout: BelowOne = 0.0
    channel_mult: Factors = (1, 2, 4, 8)
    conv_resample: Flag = True
    num_classes: Entries | None = None
    num_heads: Heads | Levels[Heads] = -1
    num_head_channels: Heads | Levels[Heads] = -1
    use_scale_shift_norm: Flag = False
    resblock_updown: Flag = False
    use_new_attention_order: Flag = False
    use_spatial_transformer: Flag = False
    transformer_depth: Blocks = 1
    context_dim: Channels | None = None
    legacy: Flag = True

    attention_levels: Flags | None = None
    mid_attention: Flag = True
    mid_attention_norm: Flag = True
    norm_groups: Channels = 32
    norm_eps: Positive = 1e-5
    downsample_padding: Annotated[int, whole(0, 1)] = 1
    frequency_shift: Number = 0.0

    def attention(self) -> list[bool]:
        """Whether each level has attention."""
        levels = len(self.channel_mult)
        if self.attention_levels is not None:
            return each_level(self.attention_levels, levels, "attention_levels")
        return [2**level in self.attention_resolutions for level in range(levels)]

    def heads(self, level: int, channels: int) -> int:
        """Return the number of attention heads at a level.

        Raises:
            UserError: none is given, or it does not divide the channels.
        """
        levels = len(self.channel_mult)
        heads = each_level(self.num_heads, levels, "num_heads")[level]
        size = each_level(self.num_head_channels, levels, "num_head_channels")[level]
        if heads < 1 and size < 1:
            raise UserError("UNetModel needs num_heads or num_head_channels")
        heads = channels // size if size > 0 else heads
        if heads < 1 or channels % heads:
            raise UserError(f"UNetModel: {channels} channels cannot have {heads} attention heads")
        return heads


class Downsample(nn.Module):
    """A 3x3 convolution with stride two; without ``padding``, behind a row and a column of zeros."""

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x if self.op.padding[0] else F.pad(x, (0, 1, 0, 1)))


class ResBlock(nn.Module):
    """Residual block conditioned on the timestep embedding.

    ``resample`` is "up" or "down" for a block that also changes the resolution (``resblock_updown``), by nearest
    upsampling or average pooling between the first activation and the first convolution, and on the skip connection.
    """

    def __init__(self, settings: UNetSettings, channels: int, out_channels: int, resample: str | None = None):
        super().__init__()
        self.use_scale_shift_norm = settings.use_scale_shift_norm
        self.resample = resample
        eps, groups = settings.norm_eps, settings.norm_groups
        self.in_layers = nn.Sequential(
            GroupNorm(channels, eps, groups), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        embedded = out_channels * (2 if self.use_scale_shift_norm else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * settings.model_channels, embedded))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels, eps, groups),
            nn.SiLU(),
            nn.Dropout(settings.dropout),
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

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """A prediction of the noise in x at timesteps t, with optional class labels and cross-attention context.

    Keywords are those of `UNetSettings`.
    """

    def __init__(self, **params: Any):
        super().__init__()
        settings = read_params(UNetSettings, params, type(self))
        if settings.use_spatial_transformer and settings.context_dim is None:
            raise UserError("use_spatial_transformer needs context_dim")
        self.settings = settings
        self.image_size, self.in_channels = settings.image_size, settings.in_channels
        self.out_channels, self.num_classes = settings.out_channels, settings.num_classes
        self.downsampling = 2 ** (len(settings.channel_mult) - 1)
        ch = settings.model_channels
        self.time_embed = nn.Sequential(nn.Linear(ch, 4 * ch), nn.SiLU(), nn.Linear(4 * ch, 4 * ch))
        if settings.num_classes is not None:
            self.label_emb = nn.Embedding(settings.num_classes, 4 * ch)
        channels = widths(ch, settings.channel_mult)
        blocks = each_level(settings.num_res_blocks, len(channels), "num_res_blocks")
        skips = self._build_descent(channels, blocks)
        self.middle_block = self._build_middle(channels[-1])
        self._build_ascent(channels, blocks, skips)
        self.out = nn.Sequential(
            GroupNorm(channels[0], settings.norm_eps, settings.norm_groups),
            nn.SiLU(),
            zero_module(nn.Conv2d(channels[0], settings.out_channels, 3, padding=1)),
        )

    def _build_descent(self, channels: list[int], blocks: list[int]) -> list[int]:
        """Build ``input_blocks``; returns the channels that each hands to the ascending half."""
        settings, ch = self.settings, self.settings.model_channels
        first = nn.Conv2d(settings.in_channels, ch, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        skips = [ch]
        for level, width in enumerate(channels):
            for _ in range(blocks[level]):
                self.input_blocks.append(self._block(level, ch, width))
                ch = width
                skips.append(ch)
            if level < len(channels) - 1:
                self.input_blocks.append(TimestepEmbedSequential(self._downsample(ch)))
                skips.append(ch)
        return skips

    def _build_middle(self, channels: int) -> "TimestepEmbedSequential":
        settings = self.settings
        attention: list[nn.Module] = []
        first = ResBlock(settings, channels, channels)
        if settings.mid_attention:
            attention = [self._attention(-1, channels, norm=settings.mid_attention_norm)]
        return TimestepEmbedSequential(first, *attention, ResBlock(settings, channels, channels))

    def _build_ascent(self, channels: list[int], blocks: list[int], skips: list[int]) -> None:
        """Build ``output_blocks``."""
        self.output_blocks = nn.ModuleList()
        ch = channels[-1]
        for level, width in reversed(list(enumerate(channels))):
            for i in range(blocks[level] + 1):
                block = self._block(level, ch + skips.pop(), width)
                ch = width
                if level > 0 and i == blocks[level]:
                    block.append(self._upsample(ch))
                self.output_blocks.append(block)

    def _block(self, level: int, channels: int, out_channels: int) -> "TimestepEmbedSequential":
        """A residual block, with attention where its level has it."""
        block = TimestepEmbedSequential(ResBlock(self.settings, channels, out_channels))
        if self.settings.attention()[level]:
            block.append(self._attention(level, out_channels))
        return block

    def _attention(self, level: int, channels: int, norm: bool = True) -> nn.Module:
        settings = self.settings
        heads = settings.heads(level, channels)
        if settings.use_spatial_transformer:
            return SpatialTransformer(
                channels, heads, channels // heads, settings.transformer_depth, settings.context_dim,
                settings.dropout, settings.norm_groups,
            )  # fmt: skip
        before = GroupNorm(channels, settings.norm_eps, settings.norm_groups) if norm else nn.Identity()
        return AttentionBlock(channels, heads, before, settings.use_new_attention_order)

    def _downsample(self, channels: int) -> nn.Module:
        if self.settings.resblock_updown:
            return ResBlock(self.settings, channels, channels, "down")
        if not self.settings.conv_resample:
            return nn.AvgPool2d(2)
        return Downsample(channels, self.settings.downsample_padding)

    def _upsample(self, channels: int) -> nn.Module:
        if self.settings.resblock_updown:
            return ResBlock(self.settings, channels, channels, "up")
        return Upsample(channels) if self.settings.conv_resample else nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Predict the noise in x (B, in_channels, H, W) at ``timesteps`` (B,): (B, out_channels, H, W).

        ``context`` is (B, M, context_dim) for models with a spatial transformer, ``y`` (B,) class labels.

        Raises:
            ValueError: labels given to a model without classes, or missing for one with.
        """
        if (y is not None) != (self.num_classes is not None):
            raise ValueError("y must be given if and only if the model has num_classes")
        settings = self.settings
        steps = timestep_embedding(timesteps, settings.model_channels, shift=settings.frequency_shift)
        emb = self.time_embed(steps.to(next(self.parameters()).dtype))
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
