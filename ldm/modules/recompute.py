"""Time for memory: keep the inputs of a function for its gradient, and compute the rest again (Chen et al., 2016).

`torch.utils.checkpoint` would do, but its first call loads torch's compiler: 130 MB and two seconds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def run(function: Callable[..., Tensor], *inputs: Tensor, recompute: bool) -> Tensor:
    """``function(*inputs)``; with ``recompute`` the inputs alone are kept, and it is computed again for the gradient.

    The gradient goes to the inputs, all of which must then ask for it or none, and to nothing else that the function
    uses; it is the same to the last bit if the function draws no random numbers.
    """
    if recompute and torch.is_grad_enabled() and inputs[0].requires_grad:
        return _Recomputed.apply(function, *inputs)
    return function(*inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # to be differentiated once more
        inputs = ctx.saved_tensors if again else [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.function(*inputs)
        return None, *torch.autograd.grad(out, inputs, gradient, create_graph=again)
