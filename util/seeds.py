"""The random streams of a run: one for each purpose and image, so that nothing depends on its neighbours."""

import hashlib
import json
from typing import Any

import numpy as np
import torch


def random_stream(seed: int, image: str, purpose: str) -> np.random.RandomState:
    """Return the random numbers of one purpose for one image, the same whatever else is restored beside it."""
    return np.random.RandomState(np.frombuffer(_digest(seed, image, purpose), dtype=np.uint32))


def torch_stream(seed: int, image: str, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """As `random_stream`, for torch."""
    number = int.from_bytes(_digest(seed, image, purpose)[:8], "little", signed=True)
    return torch.Generator(device).manual_seed(number)


def _digest(*parts: Any) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()
