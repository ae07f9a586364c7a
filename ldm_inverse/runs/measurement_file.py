"""Measurements in files: `label/<image>.safetensors` of a run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from util.errors import UserError


def encode(tensors: Mapping[str, Tensor], made_by: Mapping[str, Any]) -> bytes:
    """Return a measurement and what the operator drew as a file's content, the settings that made it in its header."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save(tensors, metadata={"made_by": json.dumps(made_by)})


def read_measurement(folder: Path, image: str, made_by: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read back what `encode` made: the measurement and what the operator drew.

    Raises:
        UserError: no such file, one that is damaged, or one that other settings made.
    """
    path = folder / f"{image}.safetensors"
    if not path.is_file():
        raise UserError(f"no measurement of {image!r} in {folder}: looked for {path.name}")
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("made_by", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable measurement: {error}") from error
    expected = json.loads(json.dumps(made_by))  # as a file gives it back: tuples are lists
    if found != expected:
        raise UserError(f"{path} is a measurement with other settings: {found}, where the task has {expected}")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise UserError(
                f"{path} is not a readable measurement: {key} holds NaN, infinity or {tensor.dtype} numbers"
            )
    return tensors
