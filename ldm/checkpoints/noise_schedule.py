"""The noise schedule that a file holds, beside the one that its configuration describes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from util.errors import UserError
from util.logging import LOGGER

# Each tells the whole schedule, the first with less rounding. All other buffers follow from them.
NAMES = ("betas", "alphas_cumprod")
_TOLERANCE = 1e-3  # relative: what other code's rounding makes of the same schedule


def is_rounded(tensor: Tensor) -> bool:
    """Whether numbers have half precision or less: then what can be computed is."""
    return tensor.dtype.itemsize < torch.float32.itemsize


def take_schedule(model: LatentDiffusion, stored: Mapping[str, Tensor], path: Path) -> None:
    """Give a model the schedule that its file holds, where that is not the configuration's, and say so.

    Args:
        model: with the schedule of its configuration.
        stored: what the file holds of `NAMES`, (timesteps,) each, in the file's precision.
        path: the file, for messages.

    Raises:
        UserError: the file's schedule is none, or ends without signal; or it is another one than the configuration's,
            and in half precision, which is too coarse to take it over.
    """
    exact = {name: tensor.double() for name, tensor in stored.items() if not is_rounded(tensor)}
    for name, tensor in exact.items():
        _check_range(name, tensor, path)
    differing = [name for name, tensor in stored.items() if not _agree(tensor, model.get_buffer(name))]
    if not differing:
        return
    if not exact:
        raise UserError(
            f"{path} was trained with another noise schedule than the configuration's, and holds it in half precision: "
            "correct beta_schedule, linear_start and linear_end"
        )
    LOGGER.warning("%s was trained with another noise schedule than the configuration's; the file's is used", path)
    model.register_schedule("cpu", exact["betas"] if "betas" in exact else _betas(exact["alphas_cumprod"]))


def _check_range(name: str, numbers: Tensor, path: Path) -> None:
    if numbers[-1] == {"betas": 1, "alphas_cumprod": 0}[name]:
        raise UserError(
            f"{path}: its noise schedule leaves no signal at the last step (zero terminal SNR), which is not supported"
        )
    if not 0 < numbers.min() <= numbers.max() < 1:
        raise UserError(f"{path}: {name} holds numbers outside 0 to 1: the file is damaged")


def _agree(stored: Tensor, own: Tensor) -> bool:
    """Whether a buffer of a file is the model's, but for the rounding of its precision."""
    precision = torch.finfo(stored.dtype)
    relative = max(_TOLERANCE, precision.eps)
    return stored.double().allclose(own.double(), rtol=relative, atol=max(1e-8, precision.tiny * precision.eps))


def _betas(abar: Tensor) -> Tensor:
    return 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
