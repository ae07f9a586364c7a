"""Reading arrays of numbers from files that may be anything: .npy, .safetensors, and pictures as grey. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from util.errors import UserError
from util.picture_files import opened

ARRAY_SUFFIXES = (".npy", ".safetensors")
MAGIC = b"\x93NUMPY"


def read_numbers(path: Path) -> np.ndarray:
    """Read the array of a .npy file, the only one of a .safetensors file, or a picture's grey values (H, W), upright.

    Raises:
        UserError: the file cannot be read, or is none of these; it holds something else than finite numbers, or more
            values than the pixels that Pillow deems safe; a picture is partly transparent.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return read_npy(path)
    if suffix == ".safetensors":
        tensors, _ = read_safetensors(path)
        if len(tensors) != 1:
            raise UserError(f"{path}: expected one array, found {len(tensors)}: {', '.join(tensors) or 'none'}")
        return next(iter(tensors.values()))
    return _read_grey(path)


def read_npy(path: Path) -> np.ndarray:
    """Read a .npy file; nothing in it is run. Raises as `read_numbers`."""
    try:
        with open(path, "rb") as file:
            magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise UserError(f"{path}: not a .npy file")
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: the file need not hold what it declares
        return _checked(str(path), array).copy()
    except UserError:
        raise
    except Exception as error:  # whatever a damaged header leads to
        raise _unreadable(path, error) from error


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """Read a .safetensors file: its arrays by name, and its header's remarks. Raises as `read_numbers`."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {key: _checked(f"{path}: {key}", file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except UserError:
        raise
    except Exception as error:  # as above; safetensors has an exception of its own for each number format, too
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path}: cannot be read as a {path.suffix} array: {reason}")


def _checked(name: str, array: Any) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise UserError(f"{name}: expected numbers, found {array.dtype}")
    limit = 3 * (Image.MAX_IMAGE_PIXELS or 0)
    if limit and array.size > limit:
        raise UserError(f"{name}: holds more than {limit} values")
    if not np.isfinite(array).all():
        raise UserError(f"{name}: holds NaN or infinity")
    return array


def _read_grey(path: Path) -> np.ndarray:
    with opened(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
            raise ValueError("it is partly transparent; save it without an alpha channel")
        if image.mode[0] not in "IF":  # 16 and 32 bits are grey already, and would be clipped
            image = image.convert("L")
        return np.asarray(image.convert("F"), dtype=np.float64)
