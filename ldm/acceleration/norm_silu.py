"""SiLU behind a GroupNorm whose weights do not change any more, in few passes over the memory of a processor."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.modules.diffusionmodules.util import GroupNorm

# Entries at a time for each thread: what a core's second cache holds a few of. Half takes as long when the machine is
# idle, but twice as many barriers, at which threads wait for each other when it is not.
ENTRIES_A_THREAD = 1 << 18


def norm_silu(x: Tensor, norm: GroupNorm) -> Tensor:
    """``silu(norm(x))`` of x (B, C, H, W) in the layout channels_last on a processor.

    Nothing but x is kept, for a gradient of x alone.
    """
    return _NormSiLU.apply(x, norm)


def _strips(*images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Strips of pixels (n, C) of images (1, C, H, W), which stay in a cache from operation to operation."""
    pixels = [image[0].permute(1, 2, 0).flatten(0, 1) for image in images]
    entries = ENTRIES_A_THREAD * torch.get_num_threads()
    return zip(*(each.split(max(1, entries // each.shape[1])) for each in pixels), strict=True)


class _NormSiLU(torch.autograd.Function):
    """Image by image; with statistics, sums and SiLU in float32 where x has half precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: GroupNorm) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        out = torch.empty_like(x, memory_format=torch.channels_last)
        images = x.split(1)
        ctx.lines = [_Line(image, norm) for image in images]
        for line, image, result in zip(ctx.lines, images, out.split(1), strict=True):
            line.silu(image, result)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return torch.autograd.grad(F.silu(ctx.norm(x)), x, gradient, create_graph=True)[0], None
        out = torch.empty_like(x, memory_format=torch.channels_last)
        gradients = gradient.contiguous(memory_format=torch.channels_last).split(1)
        for line, image, given, result in zip(ctx.lines, x.split(1), gradients, out.split(1), strict=True):
            line.gradient(image, given, result)
        return out, None


class _Line:
    """A GroupNorm of an image (1, C, H, W) as the straight line ``slope x + offset`` that it is for each channel.

    Sums over the pixels are those of torch's batch normalisation, which a processor takes in one pass.
    """

    def __init__(self, image: Tensor, norm: GroupNorm):
        self.groups, self.dtype = norm.num_groups, torch.promote_types(image.dtype, torch.float32)
        self.weight = norm.weight.double()
        means, variances = (each.double() for each in torch.batch_norm_update_stats(image, None, None, 0.0))
        self.mean = self._mean_of_group(means)
        variance = self._mean_of_group(variances + (means - self.mean) ** 2)
        self.scale = (variance + norm.eps).rsqrt()
        slope = self.scale * self.weight
        self.slope, self.offset = slope.to(self.dtype), (norm.bias - self.mean * slope).to(self.dtype)

    def _mean_of_group(self, each: Tensor) -> Tensor:
        """The mean over a group, for each of its channels (C,)."""
        return each.unflatten(0, (self.groups, -1)).mean(1).repeat_interleave(len(each) // self.groups)

    def silu(self, image: Tensor, out: Tensor) -> None:
        """Write ``silu(slope x + offset)``."""
        for x, result in _strips(image, out):
            result.copy_(F.silu(torch.addcmul(self.offset, x.to(self.dtype), self.slope), inplace=True))

    def gradient(self, image: Tensor, gradient: Tensor, out: Tensor) -> None:
        """Write the gradient of the image, given that of what `silu` wrote."""
        for x, given, result in _strips(image, gradient, out):
            h = torch.addcmul(self.offset, x.to(self.dtype), self.slope)
            result.copy_(torch.ops.aten.silu_backward.grad_input(given.to(self.dtype), h, grad_input=h))
        # What the mean and the deviation make of it: the sums of the gradient, and of its product with x - mean.
        mean, one = self.mean.to(self.dtype), torch.ones_like(self.slope)
        _, products, sums = torch.ops.aten.native_batch_norm_backward(
            out, image, one, None, None, mean, one, True, 0.0, [False, True, True]
        )
        pixels = image.shape[2] * image.shape[3]
        average, product = (self._mean_of_group(each.double() * self.weight) / pixels for each in (sums, products))
        slope = -product * self.scale**3
        offset = (-slope * self.mean - average * self.scale).to(self.dtype)
        slope = slope.to(self.dtype)
        for x, result in _strips(image, out):
            line = torch.addcmul(offset, x.to(self.dtype), slope)
            result.copy_(line.addcmul_(result.to(self.dtype), self.slope))
