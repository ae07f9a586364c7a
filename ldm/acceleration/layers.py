"""Faster classes for the layers of a first stage whose weights do not change any more.

A layer that is to compute faster keeps its parameters, their names and its hooks, and changes its class (`become`), as
`torch.nn.utils.parametrize` does. Each class here computes what its base class does, in another order of operations.
"""

from collections.abc import Callable
from functools import reduce
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.acceleration.fast_convolution import UPSAMPLING, convolve, convolve_directly, winograd
from ldm.acceleration.norm_silu import norm_silu
from ldm.acceleration.products import product
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder, NormSiLU, ResnetBlock, Upsample

# Queries whose scores a processor holds at a time: of 4096 positions, 16 MB.
QUERIES_AT_ONCE = 1024
# Latent positions of an image that occupies a processor and its caches by itself: several at once would take longer.
ALONE = 64 * 64

Kind = TypeVar("Kind", bound=nn.Module)


def become(layer: nn.Module, kind: type[Kind]) -> Kind:
    """Let a layer compute as ``kind``, a class derived from its own, does; returns the layer."""
    layer.__class__ = kind
    return cast(Kind, layer)


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, of which only x is kept for the gradient (Chen et al., 2016); it draws no random numbers."""
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


class DirectConv(nn.Conv2d):
    """A 3x3 convolution that keeps nothing for a gradient of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve_directly(x, self.weight, self.bias)


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution of many channels, by fewer multiplications."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, winograd(self.weight.dtype))


class DirectUpsample(Upsample):
    """As `DirectConv`, behind the upsampling."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return convolve_directly(x, self.conv.weight, self.conv.bias)


class WinogradUpsample(Upsample):
    """Of many channels: upsampling and convolution at once, by a quarter of the multiplications."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.conv.weight, self.conv.bias, UPSAMPLING)


class FoldedUpsample(Upsample):
    """Of few channels: upsampling and convolution at once, by 4/9 of the multiplications.

    Taps that fall on the same pixel before upsampling are added up beforehand. What remains of the two is a transposed
    convolution of stride two, whose 4x4 kernel is the 3x3 one spread by a 2x2 box.
    """

    folded: Tensor

    def fold(self) -> None:
        """Add up the taps."""
        taps = self.conv.weight.detach().flip(2, 3).transpose(0, 1)
        places = [(right, 1 - right, down, 1 - down) for right in (0, 1) for down in (0, 1)]
        folded = reduce(torch.add, (F.pad(taps, place) for place in places))
        self.register_buffer("folded", folded, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return convolve_directly(x, self.folded, self.conv.bias, transposed=True)


# What a compiler leaves alone: it does nothing for matrix products.
FROZEN = (DirectConv, WinogradConv, DirectUpsample, WinogradUpsample, FoldedUpsample)


class FusedNormSiLU(NormSiLU):
    """GroupNorm and SiLU in few passes over a processor's memory; keeps only its input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous(memory_format=torch.channels_last) and not torch.compiler.is_compiling():
            return norm_silu(x, self)
        return super().forward(x)


class RecomputedNormSiLU(NormSiLU):
    """GroupNorm and SiLU that keep only their input."""

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(super().forward, x)


class ProductAttention(AttnBlock):
    """Attention by matrix products.

    torch's fused attention on a processor is made for many narrow heads. It shares out only samples and heads among the
    threads, so that the backward pass of one sample has one thread, and computes half precision in float32.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = (k * k.shape[-1] ** -0.5).transpose(1, 2)
        return torch.stack([self._attend(*one) for one in zip(q, keys, v, strict=True)])

    def _attend(self, q: Tensor, keys: Tensor, v: Tensor) -> Tensor:
        """For one image: q and v (N, C), keys (C, N)."""
        return torch.cat([product(torch.softmax(product(some, keys), dim=-1), v) for some in q.split(QUERIES_AT_ONCE)])


class RecomputedAttention(AttnBlock):
    """Attention that keeps only its input."""

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(super().forward, x)


class RecomputedProductAttention(RecomputedAttention, ProductAttention):
    """Both."""


class RecomputedResnetBlock(ResnetBlock):
    """A residual block that keeps only its input, once its second convolution keeps nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.nin_shortcut(x) + self.conv2(recomputed(self._activated, x))

    def _activated(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm2(self.conv1(self.norm1(x))))


class OneByOneDecoder(Decoder):
    """A decoder that takes large images of a batch in turn."""

    def forward(self, z: Tensor) -> Tensor:
        if len(z) > 1 and z[0, 0].numel() >= ALONE:
            return torch.cat([super(OneByOneDecoder, self).forward(one) for one in z.split(1)])
        return super().forward(z)
