"""Recorded inputs and outputs of the reference implementation, in float64, and the weights of its tiny models."""

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def recorded(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of ``<name>.npz``, and what is needed to rebuild the case, from ``<name>.json`` (if there)."""
    with np.load(HERE / f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    description = HERE / f"{name}.json"
    return tensors, json.loads(description.read_text()) if description.exists() else {}


def fill_parameters(module: NetworkT, seed: int) -> NetworkT:
    """Give every parameter the value it had in the recording, in the order of names; to float64 and eval mode."""
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            value = rng.standard_normal(tuple(parameter.shape))
            if parameter.ndim == 1:
                value = 0.1 * value + name.endswith("weight")
            elif not name.endswith("embedding.weight"):
                value = value / np.sqrt(parameter[0].numel())
            parameter.copy_(torch.from_numpy(value.astype(np.float32)))
    return module.eval().double()


def relative_error(got: Tensor, want: Tensor) -> float:
    """max |got - want| / max |want|."""
    assert got.shape == want.shape
    return float((got.detach().double() - want.double()).abs().max() / want.abs().max())
