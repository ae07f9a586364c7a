"""Blur kernels: a Gaussian's, and those that a person gives."""

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import BeforeValidator
from torch import Tensor

from data.array_choice import files_by_name, path_text, read_array
from data.colour import Say
from util.errors import UserError

MAX_KERNEL_SIZE = 1023


def _kernel_setting(value: Any) -> Any:
    """Let through what may be a kernel, and put together a file's name that YAML has taken for a mapping."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((head, tail),) = value.items()
        value = f"{head}: {tail}" if isinstance(head, str) and Path(f"{head}: {tail}").exists() else value
    if isinstance(value, bool | int | float | Mapping):
        raise ValueError(
            "expected a file, a folder or an array (put a file name that contains ': ' in quotes of its own)"
        )
    return path_text(value)


Kernel = Annotated[Any, BeforeValidator(_kernel_setting)]  # an array, or the path of a file or folder


def as_state(kernels: Sequence[np.ndarray]) -> Tensor:
    """Stack kernels (kh, kw) to a float32 tensor (B, 1, kh, kw)."""
    return torch.from_numpy(np.stack(kernels).astype(np.float32)[:, None])


def gaussian_kernel(size: int, sigma: float) -> np.ndarray:
    """Return what SciPy's Gaussian filter makes of a unit impulse in a square of ``size``: (size, size), sum one.

    Where four deviations reach beyond the square, the rest is reflected into it.
    """
    from scipy.ndimage import gaussian_filter  # slow to import

    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    return gaussian_filter(impulse, sigma)


def trimmed(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel (kh, kw), odd sides, without the outer rows and columns that are zero on both sides."""
    for _ in range(2):
        used = np.flatnonzero((kernel != 0).any(1))
        cut = min(used[0], len(kernel) - 1 - used[-1])
        kernel = kernel[cut : len(kernel) - cut].T
    return kernel


def given_kernel(kernel: Kernel, is_psf: bool, say: Say) -> np.ndarray:
    """Return a person's kernel, an array or what `data.array_choice.read_array` takes, as float64 of sum one.

    Args:
        kernel: as said; of even sides, it gets a row or column of zeros at the end.
        is_psf: whether it is a point spread function, which is then turned by 180 degrees.
        say: is told what is odd about it, and what is done to it.

    Returns:
        (kh, kw), odd sides.

    Raises:
        UserError: it cannot be read, or is not a kernel.
    """
    if not isinstance(kernel, str | PathLike):
        return prepared("kernel", kernel, is_psf, say)
    if str(kernel) == "estimate":
        raise UserError(
            "kernel: estimate is not supported, because the kernel has to be known. A picture of a point of light is "
            "one; or try gaussian_blur with several intensities (scripts/sweep.py) and keep the sharpest"
        )
    try:
        found = read_array(str(kernel), "kernel")
    except UserError as error:
        raise UserError(f"kernel {error}") from error
    # What a run has saved is correlated with the image already.
    return prepared(f"kernel {kernel}", found.array, is_psf and not found.is_saved_state, say)


def prepared(name: str, kernel: ArrayLike, is_psf: bool, say: Say) -> np.ndarray:
    """Return an array as `given_kernel` does; ``name`` is what messages call it."""
    try:
        array = np.asarray(kernel, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: expected an array of numbers") from error
    shape = array.shape
    while array.ndim > 2 and 1 in (shape[0], shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
        shape = array.shape
    if array.ndim != 2 or not array.size or max(array.shape) > MAX_KERNEL_SIZE:
        raise UserError(f"{name}: expected two sides up to {MAX_KERNEL_SIZE}, got an array of shape {shape}")
    total = array.sum()
    if not np.isfinite(array).all() or total <= 0:
        raise UserError(f"{name}: expected finite entries with a sum above 0, got a sum of {total:g}")
    if (array < 0).any():
        say(logging.WARNING, f"{name}: some entries are negative, as in a sharpening filter; no camera's blur has such")
    if 0 in (array.shape[0] % 2, array.shape[1] % 2):
        say(logging.INFO, f"{name}: its sides {shape} are padded with zeros at the end to make them odd")
        array = np.pad(array, [(0, 1 - side % 2) for side in array.shape])
    if is_psf:
        array = array[::-1, ::-1].copy()
    # A kernel rounded to float32 sums to one only nearly; dividing would round it a second time.
    if abs(total - 1) < 1e-5:
        return array
    say(logging.INFO, f"{name}: divided by its sum, {total:g}")
    return array / total


def kernel_folder(folder: Path, is_psf: bool, say: Say) -> Mapping[str, Tensor]:
    """Return the kernels of a folder as states (1, 1, kh, kw) of one size, by their files' names without suffix.

    Raises:
        UserError: one cannot be used, or there is none.
    """
    kernels = {name: given_kernel(file, is_psf, say) for name, file in files_by_name(folder, "kernel").items()}
    if not kernels:
        raise UserError(f"kernel {folder}: no kernel in this folder: looked for NAME.npy, .png, .mat, ...")
    sides = np.max([kernel.shape for kernel in kernels.values()], axis=0)
    return {
        name: as_state([np.pad(k, [2 * ((s - n) // 2,) for s, n in zip(sides, k.shape, strict=True)])])
        for name, k in kernels.items()
    }
