"""Makes a clean safetensors file of a checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ldm.checkpoints.diffusers_config import read_config
from ldm.checkpoints.digest import checkpoint_sha256
from ldm.checkpoints.fitting import spellings, without_wrappers
from ldm.checkpoints.reading import AVERAGES, StoredTensor, write_checkpoint
from model_loader import read_weights, resolve_model
from util.errors import UserError
from util.files import whole_file
from util.logging import LOGGER
from util.yaml import load_yaml

# Names below these are for training only, in a whole model and in a first stage alone.
TRAINING_ONLY = re.compile(rf"(first_stage_model\.)?(loss|{'|'.join(AVERAGES)})\.|logvar$")
# The networks. What is outside them, schedules and scales, is small and keeps its precision.
NETWORKS = re.compile(r"(model\.diffusion_model|(first|cond)_stage_model|encoder|decoder|(post_)?quant(ize|_conv))\.")


def converted(name: str, tensor: Tensor, half: bool) -> Tensor:
    """Return what the new file holds of a tensor.

    Raises:
        UserError: the tensor is not finite, or leaves the range of half precision.
    """
    if half and tensor.is_floating_point() and NETWORKS.match(without_wrappers(name)):
        tensor = tensor.half()
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{name} holds NaN, infinity or, with --half, numbers above 65504")
    return tensor.clone(memory_format=torch.contiguous_format) if _shares(tensor) else tensor


def _shares(tensor: Tensor) -> bool:
    """Whether a tensor is only a part, or another order, of the numbers it is stored in."""
    return not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes


def convert(source: Path, target: Path, ema: bool = False, half: bool = False) -> tuple[int, int]:
    """Convert one model. Where it comes with a configuration, that is written beside the new file, as a YAML of its
    name: a folder in the diffusers layout tells in it what no tensor does.

    Returns:
        How many tensors were written, and how many were left out.

    Raises:
        UserError: the source is not a readable checkpoint, a value does not fit, the target cannot be written, or the
            YAML of its name is another model's.
    """
    path = resolve_model(source)
    config = own_configuration(path)
    params = _parameters(config)
    if params.get("use_ema") is True:  # which the new file's weights are then, and no other average is in it
        ema = True
        params["use_ema"] = False
    yaml_path = target.with_suffix(".yaml")
    described = _is_described(yaml_path, config)
    checkpoint_sha256(path)  # which reads its checksums
    stored = named_plainly(read_weights(path, use_ema=ema or None))
    wanted = {name: tensor for name, tensor in stored.items() if not TRAINING_ONLY.match(without_wrappers(name))}
    tensors = {name: converted(name, tensor.read(), half) for name, tensor in wanted.items()}
    about = {"weights": "moving average" if ema else "raw"}
    if described:
        write_checkpoint(target, tensors, about)
    else:
        with whole_file(yaml_path) as part:  # whole before the weights are written, and in its place after them
            part.write_text(yaml.safe_dump(config, sort_keys=False))
            write_checkpoint(target, tensors, about)
    return len(wanted), len(stored) - len(wanted)


def own_configuration(path: Path) -> dict[str, Any] | None:
    """Return the configuration that a model comes with; None for a file without a YAML of its name beside it.

    Raises:
        UserError: it cannot be read or honoured.
    """
    if path.is_dir():
        return read_config(path.absolute())  # it names the tokenizer's folder
    beside = path.with_suffix(".yaml")
    return load_yaml(beside) if beside.is_file() else None


def _parameters(config: dict[str, Any] | None) -> dict[str, Any]:
    """Return the parameters of the model in a configuration, to be read and changed."""
    model = (config or {}).get("model")
    params = model.get("params") if isinstance(model, dict) else None
    return params if isinstance(params, dict) else {}


def _is_described(path: Path, config: dict[str, Any] | None) -> bool:
    """Whether there is nothing to write where a new file's configuration is looked for.

    Raises:
        UserError: another configuration than the model's is there.
    """
    if config is None:
        if path.is_file():
            LOGGER.warning("%s is there, and is taken for the new file's configuration", path)
        return True
    if path.is_file() and yaml.safe_dump(load_yaml(path)) != yaml.safe_dump(config):
        raise UserError(f"{path} is there and holds another configuration than the model's, which belongs there: "
                        "give the new file another name")  # fmt: skip
    return path.is_file()


def named_plainly(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return a file's tensors under those names, with prefixes or without, that the most of them have in a model."""
    return max(spellings(stored), key=lambda names: sum(NETWORKS.match(name) is not None for name in names))
