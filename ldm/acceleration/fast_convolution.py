"""3x3 convolutions with fewer multiplications, for weights that do not change any more, on a processor.

Winograd's minimal filtering (Lavin and Gray, 2016): windows of the input and the kernels are transformed, multiplied
entry by entry (which over channels is a matrix product for each entry), and the products are transformed to tiles of
the output: ``y = A^T [sum_c (G w G^T) * (B^T x B)] A``.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.acceleration.products import multiply_each, product

# Bytes of transformed windows at a time: few enough for a processor's caches, and enough that a product is worth its
# call. With two threads of an EPYC, 3 MB take a quarter longer, 24 MB as long.
BYTES_AT_ONCE = 12 << 20
SMALL = 1 << 20  # bytes that are not worth giving back
# With fewer channels, in or out, the transforms cost what the products save.
LEAST_CHANNELS, LEAST_CHANNELS_ELSE = 128, 256


class _Scratch(threading.local):
    """Memory for what lives within one convolution, kept from one to the next.

    From the allocator, each time anew, it would come as new pages, or leave holes between the results.
    """

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with anything in it; until the same name is taken again.

        A block ten times too large is given back: wide kernels go with small images, whose gradients are not the peak.
        """
        size = math.prod(shape) * dtype.itemsize
        if name not in self.held or not size <= len(self.held[name]) <= max(10 * size, SMALL):
            self.held.pop(name, None)
            with torch.inference_mode(False):
                self.held[name] = torch.empty(size, dtype=torch.uint8)
        return self.held[name][:size].view(dtype).view(shape)


_scratch = _Scratch()


@dataclass(frozen=True, eq=False)
class Algorithm:
    """A bilinear algorithm for one side of the image; both sides take the same.

    Window t starts at input ``stride * t - 1`` (outside are zeros) and gives the outputs from ``tile * t`` on.

    Attributes:
        inputs: B^T (P, window), from a window to P factors.
        outputs: A^T (tile, P), from P products to a tile.
        stride: inputs from one window to the next.
    """

    inputs: Tensor
    outputs: Tensor
    stride: int

    @lru_cache  # noqa: B019 - the few algorithms there are live as long as the program
    def transforms(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """B^T and A^T of both sides at once, (P^2, window^2) and (tile^2, P^2)."""
        return torch.kron(self.inputs, self.inputs).to(dtype), torch.kron(self.outputs, self.outputs).to(dtype)


@dataclass(frozen=True, eq=False)
class Method:
    """How a 3x3 convolution is computed.

    Attributes:
        kernels: G (P, 3), from the taps of one side to P factors.
        forward: the convolution.
        adjoint: its transpose, which takes the same factors of the kernels, transposed.
    """

    kernels: Tensor
    forward: Algorithm
    adjoint: Algorithm

    @lru_cache  # noqa: B019 - as above
    def _transform(self, dtype: torch.dtype) -> Tensor:
        """G of both sides at once, (P^2, 9)."""
        return torch.kron(self.kernels, self.kernels).to(dtype)

    def factors(self, weight: Tensor) -> Tensor:
        """The transformed kernels (P^2, C, K) of a convolution's weight (K, C, 3, 3), in the scratch memory."""
        transform = self._transform(weight.dtype)
        taps = _scratch.take("taps", (3, 3, *weight.shape[:2]), weight.dtype).copy_(weight.permute(2, 3, 0, 1))
        factors = _scratch.take("factors", (len(transform), taps[0, 0].numel()), weight.dtype)
        return torch.mm(transform, taps.view(9, -1), out=factors).unflatten(1, weight.shape[:2]).transpose(1, 2)


def _winograd(tile: int) -> Method:
    """Tiles of 2 or 4 pixels from windows 2 wider, by 2.25 or 4 times fewer multiplications (Toom-Cook, Winograd).

    Evaluation points are closed under ``p -> 1 / p``: the taps' order reversed only reorders the factors, and so the
    gradient takes the same ones. +-1/sqrt(2) and +-sqrt(2), rather than the usual +-1 and +-2, keep float32's error
    small; half precision has no digits to spare and takes the tile of 2.
    """
    root = 2**0.5
    points = torch.tensor({2: [0, 1, -1], 4: [0, root / 2, -root / 2, root, -root]}[tile], dtype=torch.float64)
    reversal = {2: [3, 1, 2, 0], 4: [5, 3, 4, 1, 2, 0]}[tile]

    def evaluation(taps: int) -> Tensor:
        powers = points[:, None] ** torch.arange(taps, dtype=torch.float64)
        return torch.cat([powers, F.one_hot(torch.tensor([taps - 1]), taps).double()])  # the last point is infinity

    scale = torch.cat([points.abs(), torch.ones(1)]).clamp_min(0.5)[:, None]
    scale[0] = 1
    inputs = torch.linalg.inv(evaluation(tile + 2)).T * scale
    outputs = evaluation(tile).T
    adjoint = Algorithm(inputs[reversal], outputs[:, reversal], tile)
    return Method(evaluation(3) / scale, Algorithm(inputs, outputs, tile), adjoint)


def _upsampling() -> Method:
    """Nearest upsampling by two and then the convolution, by 4 times fewer multiplications.

    With taps a, b, c, inputs x and their differences d[i] = x[i] - x[i - 1], the two outputs at x[i] are
    ``(a + b + c) x[i] - a d[i]`` and ``(a + b + c) x[i] + c d[i + 1]``: three products.
    """

    def matrix(*rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    forward = Algorithm(matrix([1, -1, 0], [0, 1, 0], [0, -1, 1]), matrix([1, 1, 0], [0, 1, 1]), 1)
    adjoint = Algorithm(matrix([0, -1, 0, 1], [0, 1, 1, 0], [1, 0, -1, 0]), matrix([1, 1, 1]), 2)
    return Method(matrix([1, 0, 0], [1, 1, 1], [0, 0, 1]), forward, adjoint)


WINOGRAD = {tile: _winograd(tile) for tile in (2, 4)}
UPSAMPLING = _upsampling()


def is_half(dtype: torch.dtype) -> bool:
    """Whether a number format has 16 bits."""
    return dtype in (torch.bfloat16, torch.float16)


def winograd(dtype: torch.dtype) -> Method:
    """The method for convolutions in a number format."""
    return WINOGRAD[2 if is_half(dtype) else 4]


def pays(conv: nn.Conv2d, dtype: torch.dtype, upsampling: bool = False) -> bool:
    """Whether a convolution has channels enough in this number format; ``upsampling`` by two comes before it."""
    least = LEAST_CHANNELS_ELSE if upsampling or is_half(dtype) else LEAST_CHANNELS
    return min(conv.in_channels, conv.out_channels) >= least


def _strip(x: Tensor, factors: Tensor, algorithm: Algorithm, first: int, count: int) -> Tensor:
    """Outputs (count, tile, windows, tile, K) of ``count`` rows of windows of an image x (H, W, C), from ``first``.

    They lie in the scratch memory.
    """
    to_factors, to_tiles = algorithm.transforms(x.dtype)
    width, channels = x.shape[1:]
    stride, (tile, products), window = algorithm.stride, algorithm.outputs.shape, algorithm.inputs.shape[1]
    columns = -(-width // stride)
    # The rows that the windows cover, with zeros around the image.
    top = stride * first - 1
    covered = stride * (count - 1) + window, stride * (columns - 1) + window, channels
    rows = _scratch.take("rows", covered, x.dtype).zero_()
    inside = x[max(top, 0) : top + len(rows)]
    rows[max(-top, 0) :][: len(inside), 1 : width + 1] = inside
    row, size = rows.stride(0), count * columns
    windows = _scratch.take("even", (window, window, count, columns, channels), x.dtype)
    windows.copy_(rows.as_strided(windows.shape, (row, channels, stride * row, stride * channels, 1)))
    transformed = product(to_factors, windows.view(window**2, -1))
    multiplied = _scratch.take("even", (products**2, size, factors.shape[2]), x.dtype)
    multiply_each(transformed.view(products**2, size, channels), factors, multiplied)
    tiles = product(to_tiles, multiplied.view(products**2, -1))
    return tiles.view(tile, tile, count, columns, -1).permute(2, 0, 3, 1, 4)


def _convolve(x: Tensor, factors: Tensor, algorithm: Algorithm, bias: Tensor | None) -> Tensor:
    """Convolve x (B, C, H, W), image by image and in strips of rows; the result is in the layout channels_last."""
    height, width = x.shape[2:]
    stride, (tile, products) = algorithm.stride, algorithm.outputs.shape
    rows, columns = -(-height // stride), -(-width // stride)
    row = products**2 * columns * max(factors.shape[1:]) * x.element_size()
    strips = -(-rows // max(1, BYTES_AT_ONCE // row))
    count = -(-rows // strips)
    shape = (len(x), factors.shape[2], rows * tile, columns * tile)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for image, out in zip(x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1).unflatten(1, (rows, tile)), strict=True):
        for first in range(0, rows, count):
            strip = out[first : first + count]
            tiles = _strip(image, factors, algorithm, first, len(strip))
            strip = strip.unflatten(2, (columns, tile))
            if bias is None:
                strip.copy_(tiles)
            else:
                torch.add(tiles, bias, out=strip)
    sides = (side * tile // stride for side in (height, width))
    return y[:, :, : next(sides), : next(sides)]


class _Convolution(torch.autograd.Function):
    """A convolution whose weight gets no gradient; linear, so that its gradient is one more of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, method: Method, adjoint: bool) -> Tensor:
        # Nothing is saved as a tensor of the graph: the weight is there anyway, and its factors, four times as large,
        # are computed soon.
        ctx.weight, ctx.method, ctx.adjoint = weight, method, adjoint
        factors = method.factors(weight)
        if adjoint:
            return _convolve(x, factors.transpose(1, 2), method.adjoint, bias)
        return _convolve(x, factors, method.forward, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x = _Convolution.apply(gradient, ctx.weight, None, ctx.method, not ctx.adjoint)
        return x, None, None, None, None


class _DirectConvolution(torch.autograd.Function):
    """A convolution that does not keep its input, which only a gradient of its weights would need.

    ``transposed`` is the transpose of the one it is otherwise, with its bias; ``stride`` is that one's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, transposed: bool) -> Tensor:
        ctx.weight, ctx.stride, ctx.transposed = weight, stride, transposed
        function = F.conv_transpose2d if transposed else F.conv2d
        return function(x, weight, bias, stride=stride, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x = _DirectConvolution.apply(gradient, ctx.weight, None, ctx.stride, not ctx.transposed)
        return x, None, None, None, None


def convolve_directly(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool = False) -> Tensor:
    """Convolve x (B, C, H, W) with a weight (K, C, 3, 3), in its number format; the gradient goes to x alone.

    ``transposed``: to twice the size, with a weight (C, K, 4, 4).
    """
    return _DirectConvolution.apply(x.to(weight.dtype), weight, bias, 2 if transposed else 1, transposed)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, method: Method) -> Tensor:
    """Convolve x (B, C, H, W) with a weight (K, C, 3, 3), in its number format.

    The gradient goes to x alone. An image's result does not depend on the others of its batch.
    """
    return _Convolution.apply(x.to(weight.dtype), weight, bias, method, False)
