"""One optimiser loop for everything that is fitted to a measurement, and the rules that end it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IterationCallback = Callable[[int, Tensor], None]


def mean_squared_residual(measurement: Tensor, predicted: Tensor) -> Tensor:
    """Mean over all entries of ``(y - A(x))^2``, one number per sample: (B,) of measurements (B or 1, ...)."""
    return (measurement - predicted).square().flatten(1).mean(1)


@dataclass(frozen=True)
class StopRule:
    """When `minimise` is done with a sample, asked after each step with the loss from before that step.

    Attributes:
        max_iters: steps at most ("limit").
        threshold: a loss below it ends ("threshold"); 0 never does.
        window: a loss above the one of ``window`` steps earlier ends ("plateau"); None never does.
    """

    max_iters: int
    threshold: float = 0.0
    window: int | None = None

    def reason(self, losses: Sequence[float]) -> str:
        """Why to stop after these losses of one sample, the latest last; "" to go on."""
        if losses[-1] < self.threshold:
            return "threshold"
        if self.window is not None and len(losses) > self.window and losses[-1 - self.window] < losses[-1]:
            return "plateau"
        return "limit" if len(losses) >= self.max_iters else ""


@dataclass(frozen=True)
class Minimum:
    """What `minimise` found: ``x`` (B, ...), and for each sample its losses and why it stopped."""

    x: Tensor
    losses: list[list[float]]
    stops: list[str]


def minimise(
    loss_fn: Callable[[Tensor], Tensor],
    x: Tensor,
    rule: StopRule,
    lr: float,
    weight_decay: float = 1e-2,
    callback: IterationCallback | None = None,
    penalty_fn: Callable[[Tensor], Tensor] | None = None,
) -> Minimum:
    """Minimise each sample's own loss, plus its penalty, from ``x``.

    By AdamW (Loshchilov and Hutter, 2019), torch's defaults. It works entry by entry, so samples do not see one another,
    and a sample that has stopped keeps what it had.

    Args:
        loss_fn: x (B, ...) to the B losses (B,); loss i must depend on x[i] alone.
        x: where to start; left as it is.
        rule: when a sample is done.
        lr: step size.
        weight_decay: AdamW's decoupled decay, a factor ``1 - lr * weight_decay`` each step.
        callback: receives the iteration (from 0) and the losses (B,) from before its step.
        penalty_fn: x to what is minimised together with the losses, (B,); rule and callback do not see it.
    """
    x = x.detach().clone().requires_grad_()
    result = torch.empty_like(x, requires_grad=False)
    losses: list[list[float]] = [[] for _ in x]
    stops = [""] * len(x)
    optimiser = torch.optim.AdamW([x], lr=lr, weight_decay=weight_decay)
    iteration = 0
    while not all(stops):
        with torch.enable_grad():
            loss = loss_fn(x)
            objective = loss if penalty_fn is None else loss + penalty_fn(x)
            # The gradient of x alone: `backward` would also fill the networks' and the kernels'.
            (x.grad,) = torch.autograd.grad(objective.sum(), x)
        optimiser.step()
        if callback is not None:
            callback(iteration, loss.detach())
        for sample, value in enumerate(loss.tolist()):
            if stops[sample]:
                continue
            losses[sample].append(value)
            stops[sample] = rule.reason(losses[sample])
            if stops[sample]:
                result[sample] = x.detach()[sample]
        iteration += 1
    return Minimum(result, losses, stops)
