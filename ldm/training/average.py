"""Moving averages of the weights, as training keeps them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def exponent(width: float) -> float:
    """The exponent gamma for which the weights of the past, ``(t / now) ** gamma``, deviate by ``width`` of the past.

    The real root of ``width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))`` (Karras et al., CVPR 2024, appendix C).
    """
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerAverage:
    """The average of a module's parameters over a training, with weights that grow as a power of the step.

    It spans the same share of the training however long that is, so that its width is chosen once; several widths kept
    side by side may be compared afterwards. Step n adds ``average <- b average + (1 - b) parameter`` with
    ``b = (1 - 1/n) ** (gamma + 1)``: the initial weights do not count.

    Args:
        width: the deviation of the weighting in time, as a share of the training so far, below 0.2887.
    """

    def __init__(self, module: nn.Module, width: float):
        self.gamma, self.updates = exponent(width), 0
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Fold the module's present parameters into the average."""
        self.updates += 1
        keep = (1 - 1 / self.updates) ** (self.gamma + 1)
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        torch._foreach_lerp_([self.average[name] for name in parameters], list(parameters.values()), 1 - keep)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The average stands in for the module's parameters inside the ``with`` block."""
        parameters = dict(module.named_parameters())
        raw = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            self._copy(self.average, parameters)
            yield
        finally:
            self._copy(raw, parameters)

    @staticmethod
    @torch.no_grad()
    def _copy(values: dict[str, Tensor], into: dict[str, Any]) -> None:
        for name, tensor in into.items():
            tensor.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` takes."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, on this average's own device."""
        self.updates = int(state["updates"])
        self._copy(state["average"], self.average)
