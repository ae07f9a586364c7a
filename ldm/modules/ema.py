"""Exponential moving average of a module's parameters, as training keeps it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps ``average <- d average + (1 - d) parameter`` for every parameter of a module.

    ``d = min(decay, (1 + n) / (10 + n))`` after n updates, so that the first averages are not the initial weights.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Fold the module's present parameters into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in module.named_parameters():
            self.average[name].lerp_(p.detach(), 1 - decay)

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
    def _copy(values: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter]) -> None:
        for name, p in parameters.items():
            p.copy_(values[name])

    def state_dict(self) -> dict:
        return {"decay": self.decay, "updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.decay, self.updates, self.average = state["decay"], state["updates"], state["average"]
