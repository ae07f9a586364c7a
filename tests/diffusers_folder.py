"""Tiny models in the diffusers layout, whose outputs diffusers has recorded (`tests/reference/diffusers`)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent / "reference" / "diffusers"
FILES = {"text_encoder": "model"}  # what a part's weights are called; all other parts' have diffusers' name
PARTS = ("unet", "vqvae", "vae", "text_encoder")


def description(name: str) -> dict[str, Any]:
    """The parts of a recorded model: their JSON files, and the shapes of their tensors."""
    return json.loads((HERE / f"{name}.json").read_text())


def recorded(name: str) -> dict[str, Tensor]:
    """Inputs, and diffusers' outputs for them."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def weights(part: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that a part had in the recording."""
    rng = np.random.RandomState(part["seed"])
    tensors = {}
    for name, shape in sorted(part["tensors"].items()):
        value = rng.standard_normal(tuple(shape))
        if len(shape) == 1:
            value = 0.1 * value + name.endswith("weight")
        elif not name.endswith("embedding.weight"):
            value = value / np.sqrt(np.prod(shape[1:]))
        tensors[name] = torch.from_numpy(value.astype(np.float32))
    return tensors


def write_folder(folder: Path, name: str, **changes: dict[str, Any]) -> Path:
    """Write a recorded model as diffusers does; ``changes`` are other values of fields, by part."""
    parts = description(name)
    for part in PARTS:
        if part in parts:
            write_part(folder / part, parts[part]["config"] | changes.get(part, {}), weights(parts[part]))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir(parents=True)
    scheduler.write_text(json.dumps(parts["scheduler"] | changes.get("scheduler", {})))
    if "text_encoder" in parts:
        shutil.copytree(HERE / "tokenizer", folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline"} | changes.get("index", {})))
    return folder


def write_part(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write one part of a model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / f"{FILES.get(folder.name, 'diffusion_pytorch_model')}.safetensors")
