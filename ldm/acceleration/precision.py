"""Half precision inside the networks; what goes in and comes out keeps its number format."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class HalfPrecision:
    """Runs a network in ``dtype``, torch.bfloat16 or torch.float16, where torch's autocast thinks it safe."""

    dtype: torch.dtype

    def __call__(self, network: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``network(x, ...)`` of float32 x (B, ...); a tensor comes back in float32."""
        x = x.view_as(x)  # without another use, as `hold_gradient_in_range` needs it
        with torch.autocast(x.device.type, self.dtype):
            out = network(x, *args, **kwargs)
        if not torch.is_tensor(out):
            return out
        out = out.to(x.dtype)
        if self.dtype is torch.float16:
            hold_gradient_in_range(x, out)
        return out


def hold_gradient_in_range(x: Tensor, out: Tensor) -> None:
    """Scale a gradient up on its way from ``out`` into a half-precision network, and down where it arrives at ``x``.

    The gradient of a mean over an image's pixels is below what float16 can tell from zero. Each sample of x and out
    (B, ...), both float32, is scaled so that the largest entry at ``out`` is 1; ``x`` must have no other use.
    """
    if not x.requires_grad or not out.requires_grad:
        return
    scales: list[Tensor] = []

    def up(gradient: Tensor) -> Tensor:
        largest = gradient.abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny * 64)
        scales[:] = [1 / largest.reshape(-1, *(1,) * (gradient.ndim - 1))]
        return gradient * scales[0]

    def down(gradient: Tensor) -> Tensor:
        return gradient / scales[0]

    out.register_hook(up)
    x.register_hook(down)
