"""Products of float32 matrices on a processor, by oneDNN.

torch computes convolutions by oneDNN, but matrix products by MKL. Where Intel did not make the processor, MKL takes
AVX2 at most: on an EPYC with AVX512, oneDNN's take half the time.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` of matrices (M, K) and (K, N)."""
    return _Product.apply(a, b) if _by_onednn(a, b) else a @ b


def multiply_each(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write the products (P, M, N) of matrices (P, M, K) and (P, K, N), without a gradient."""
    if not _by_onednn(a, b):
        torch.bmm(a, b, out=out)
        return
    for left, right, result in zip(a, b, out, strict=True):
        result.copy_(_multiply(left, right))


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether these are multiplied by oneDNN. A compiler chooses for itself, and autocast takes half precision."""
    return (
        a.dtype is b.dtype is torch.float32
        and a.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _has_onednn()
    )


@lru_cache
def _has_onednn() -> bool:
    """Whether this torch has the operation, which its compiler uses and nobody promises."""
    try:
        _multiply(torch.ones(2, 3), torch.ones(3, 2))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


class _Product(torch.autograd.Function):
    """oneDNN's product, which has no gradient in torch."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _multiply(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad
        return product(gradient, b.t()) if of_a else None, product(a.t(), gradient) if of_b else None
