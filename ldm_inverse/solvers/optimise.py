"""One optimiser loop for everything that is fitted to a measurement, and the rules that end it."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of AdamW, torch's defaults.
BETAS, EPS = (0.9, 0.999), 1e-8

# An iteration (from 0), and the loss of each sample from before its step; of one that has stopped, the last.
IterationCallback = Callable[[int, Sequence[float]], None]
# Samples (n, ...) and their positions in the batch to one number for each, (n,).
SampleLosses = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class StopRule:
    """When `minimise` is done with a sample, asked after each step with the loss from before that step.

    A loss that is not finite always ends ("not finite"): no step leads back from it.

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
        if not math.isfinite(losses[-1]):
            return "not finite"
        if losses[-1] < self.threshold:
            return "threshold"
        if self.window is not None and len(losses) > self.window and losses[-1 - self.window] < losses[-1]:
            return "plateau"
        return "limit" if len(losses) >= self.max_iters else ""


@dataclass(frozen=True)
class Minimum:
    """The result of `minimise`: ``x`` (B, ...), and for each sample its losses, why it stopped, and the loss it was
    to get below (None: there is no such rule)."""

    x: Tensor
    losses: list[list[float]]
    stops: list[str]
    targets: list[float | None]


def minimise(
    loss_fn: SampleLosses,
    x: Tensor,
    rule: StopRule | Sequence[StopRule],
    lr: float,
    weight_decay: float = 1e-2,
    callback: IterationCallback | None = None,
    penalty_fn: SampleLosses | None = None,
    look_ahead: int | None = None,
) -> Minimum:
    """Minimise each sample's own loss, plus its penalty, from ``x``.

    By AdamW (Loshchilov and Hutter, 2019), torch's defaults. It works entry by entry, so samples do not see one
    another. A sample that has stopped keeps what it had, and leaves the batch.

    Args:
        loss_fn: samples that go on (n, ...) with their positions in the batch, ascending, to their losses (n,); loss i
            must depend on sample i alone.
        x: where to start, (B, ...); left as it is.
        rule: when a sample is done; one for all, or one each.
        lr: step size.
        weight_decay: AdamW's decoupled decay, a factor ``1 - lr * weight_decay`` each step.
        callback: is told of each iteration once its losses are known.
        penalty_fn: as ``loss_fn``, what is minimised together with the losses; rule and callback do not see it.
        look_ahead: iterations that are begun before a loss is read back. None is 1 on a CUDA card, which then has work
            while the processor waits for a number, and 0 elsewhere. What is begun in vain is thrown away: results and
            losses do not depend on it.
    """
    rules = [rule] * len(x) if isinstance(rule, StopRule) else list(rule)
    limit = max(rule.max_iters for rule in rules)
    look_ahead = int(x.is_cuda) if look_ahead is None else look_ahead
    descent = _Descent(loss_fn, penalty_fn, x, lr, weight_decay)
    result = torch.empty_like(x, requires_grad=False)
    losses: list[list[float]] = [[] for _ in x]
    stops = [""] * len(x)
    under_way: deque[_Iteration] = deque()
    begun = 0
    while not all(stops):
        if begun < limit:
            under_way.append(descent.iterate(keep=look_ahead > 0))
            begun += 1
            if len(under_way) <= look_ahead:
                continue
        iteration = under_way.popleft()
        going_on = [position for position, row in enumerate(iteration.rows) if not stops[row]]
        values = iteration.read()
        for position in going_on:
            row = iteration.rows[position]
            losses[row].append(values[position])
            stops[row] = rules[row].reason(losses[row])
            if stops[row]:
                result[row] = iteration.x[position]
        if callback is not None:
            callback(begun - 1 - len(under_way), [own[-1] for own in losses])
        descent.leave_out(stops)
    return Minimum(result, losses, stops, [rule.threshold or None for rule in rules])


class _Iteration:
    """One iteration over the samples at ``rows``: their losses before the step, and where the step led, ``x``."""

    def __init__(self, rows: Sequence[int], loss: Tensor, x: Tensor):
        self.rows, self.loss, self.x = rows, loss, x
        self._copied: torch.cuda.Event | None = None
        if loss.is_cuda:
            # Into pinned memory, so that reading waits for this copy and not for what the card is told after it.
            self._host = torch.empty(loss.shape, dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(loss.device))

    def read(self) -> list[float]:
        """The losses as numbers."""
        if self._copied is None:
            return self.loss.tolist()
        self._copied.synchronize()
        return self._host.tolist()


class _Descent:
    """AdamW over the samples that go on; ``rows`` are their positions in the batch."""

    def __init__(
        self, loss_fn: SampleLosses, penalty_fn: SampleLosses | None, x: Tensor, lr: float, weight_decay: float
    ):
        self.loss_fn, self.penalty_fn = loss_fn, penalty_fn
        self.rows: Sequence[int] = range(len(x))
        self.lr, self.weight_decay = lr, weight_decay
        self.x = x.detach().clone()
        self.mean, self.square = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.steps = 0

    def iterate(self, keep: bool) -> _Iteration:
        """Take a step; with ``keep`` its outcome is kept apart from that of later steps."""
        with torch.enable_grad():
            x = self.x.detach().requires_grad_()
            loss = self.loss_fn(x, self.rows)
            objective = loss if self.penalty_fn is None else loss + self.penalty_fn(x, self.rows)
            # The gradient of x alone: `backward` would also fill the networks' and the kernels'.
            (gradient,) = torch.autograd.grad(objective.sum(), x)
        self._step(gradient)
        return _Iteration(self.rows, loss.detach(), self.x.clone() if keep else self.x)

    def _step(self, gradient: Tensor) -> None:
        """AdamW, in torch's order of operations. Torch's own imports its compiler: 160 MB and seconds a process."""
        self.steps += 1
        decay_mean, decay_square = BETAS
        self.x.mul_(1 - self.lr * self.weight_decay)
        self.mean.lerp_(gradient, 1 - decay_mean)
        self.square.mul_(decay_square).addcmul_(gradient, gradient, value=1 - decay_square)
        deviation = (self.square.sqrt() / (1 - decay_square**self.steps) ** 0.5).add_(EPS)
        self.x.addcdiv_(self.mean, deviation, value=-self.lr / (1 - decay_mean**self.steps))

    def leave_out(self, stops: Sequence[str]) -> None:
        """Continue with the samples that have not stopped, each with its moments."""
        kept = [position for position, row in enumerate(self.rows) if not stops[row]]
        if len(kept) in (0, len(self.rows)):
            return
        self.rows = [self.rows[position] for position in kept]
        self.x, self.mean, self.square = (state[kept] for state in (self.x, self.mean, self.square))
