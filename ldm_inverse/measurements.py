"""Operators and noises by name: how an image becomes a measurement."""

from collections.abc import Callable
from typing import Any

import torch

from ldm_inverse.noises import Noise, get_noise, register_noise
from ldm_inverse.operators import OPERATORS, Operator
from ldm_inverse.operators.base import build_operator

__all__ = ["Noise", "Operator", "get_noise", "get_operator", "operator_names", "register_noise", "register_operator"]


def register_operator(name: str) -> Callable:
    """Return a decorator that files an `Operator` under ``name``, for task files to use."""
    return OPERATORS.register(name)


def operator_names() -> list[str]:
    """Return the names of all operators, sorted."""
    return OPERATORS.names()


def get_operator(name: str, device: torch.device | str = "cpu", **kwargs: Any) -> Operator:
    """Build the operator filed under ``name``, on ``device``, with no parameter that asks for a gradient.

    Raises:
        UserError: no such name, or a keyword that is unknown, missing or out of range.
    """
    return build_operator(name, kwargs, f"operator {name!r}").to(device)
