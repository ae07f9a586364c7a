"""Times, floating-point operations, and what the machine can do at best."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# (channels, side) of 3x3 convolutions, and sides of square matrix products, that keep a processor or card busy.
CONVOLUTIONS = {"cpu": ((128, 64), (256, 32)), "cuda": ((256, 128), (512, 64)), "mps": ((256, 64),)}
PRODUCTS = {"cpu": (1024,), "cuda": (4096, 8192), "mps": (2048,)}


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return how long one call takes on a device."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def interleaved_medians(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[Callable[[], object]], float]
) -> dict[str, float]:
    """Return each run's median over ``repeats`` rounds, in each of which every run has its turn.

    A machine that slows down for a while then slows all of them, and leaves their ratios. A first round is not counted.

    Args:
        runs: what to time, by name.
        repeats: rounds, 1 or more.
        clock: seconds that a call takes.
    """
    rounds = [{name: clock(run) for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(times[name] for times in rounds[1:]) for name in runs}


class _FlopCounter(TorchDispatchMode):
    """Adds up what torch's formulas say of each operation (torch's own counter fails inside `autograd.grad`)."""

    def __init__(self) -> None:
        # It imports triton, whose memory is not the restoration's.
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.total = 0
        self.formulas = {**flop_registry, getattr(torch.ops.mkldnn, "_linear_pointwise", None): _product_flop}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _product_flop(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Of oneDNN's product (`ldm.acceleration.products`), for which torch has no formula: x (M, K), weight (N, K)."""
    return 2 * len(x) * weight.numel()


def count_flop(run: Callable[[], object]) -> int:
    """Return the floating-point operations of the convolutions, matrix products and attention in a call."""
    with _FlopCounter() as counter:
        run()
    return counter.total


def attainable_flops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the most floating-point operations a second that a few large convolutions and products reach."""
    runs: dict[str, Callable[[], object]] = {}
    for channels, side in CONVOLUTIONS[device.type]:
        x = torch.randn(1, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        runs[f"convolution {channels} {side}"] = partial(F.conv2d, x, weight, padding=1)
    for side in PRODUCTS[device.type]:
        a, b = torch.randn(2, side, side, device=device, dtype=dtype)
        runs[f"product {side}"] = partial(torch.matmul, a, b)
    flop = {name: count_flop(run) for name, run in runs.items()}
    with torch.no_grad():
        best = {name: min(seconds(run, device) for _ in range(repeats + 1)) for name, run in runs.items()}
    return max(flop[name] / best[name] for name in runs)
