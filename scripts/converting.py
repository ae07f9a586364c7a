"""Makes a clean safetensors file of a checkpoint."""

import re
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.digest import checkpoint_sha256
from ldm.checkpoints.reading import write_checkpoint
from model_loader import read_weights, resolve_model
from util.errors import UserError

# Names below these are for training only, in a whole model and in a first stage alone.
TRAINING_ONLY = re.compile(r"(first_stage_model\.)?(loss|model_ema)\.|logvar$")
# The networks. What is outside them, schedules and scales, is small and keeps its precision.
NETWORKS = re.compile(r"(model\.diffusion_model|(first|cond)_stage_model|encoder|decoder|(post_)?quant(ize|_conv))\.")


def converted(name: str, tensor: Tensor, half: bool) -> Tensor:
    """Return what the new file holds of a tensor.

    Raises:
        UserError: the tensor is not finite, or leaves the range of half precision.
    """
    if half and tensor.is_floating_point() and NETWORKS.match(name):
        tensor = tensor.half()
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{name} holds NaN, infinity or, with --half, numbers above 65504")
    return tensor.clone(memory_format=torch.contiguous_format) if _shares(tensor) else tensor


def _shares(tensor: Tensor) -> bool:
    """Whether a tensor is only a part, or another order, of the numbers it is stored in."""
    return not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes


def convert(source: Path, target: Path, ema: bool = False, half: bool = False) -> tuple[int, int]:
    """Convert one file.

    Returns:
        How many tensors were written, and how many were left out.

    Raises:
        UserError: the source is not a readable checkpoint, a value does not fit, or the target cannot be written.
    """
    path = resolve_model(source)
    checkpoint_sha256(path)  # which reads its checksums
    stored = read_weights(path, use_ema=ema or None)
    wanted = {name: tensor for name, tensor in stored.items() if not TRAINING_ONLY.match(name)}
    tensors = {name: converted(name, tensor.read(), half) for name, tensor in wanted.items()}
    write_checkpoint(target, tensors, {"weights": "moving average" if ema else "raw"})
    return len(wanted), len(stored) - len(wanted)
