"""Reading arrays of numbers from files that may be anything: .npy, .safetensors, and pictures as grey. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from safetensors import safe_open

from data import deep_by_pillow, dicom_files, tiff_files
from data.deep_pictures import DeepPicture
from data.picture_files import opened
from data.picture_headers import read_header
from util.errors import UserError

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
    return read_grey(path)


def read_npy(path: Path) -> np.ndarray:
    """Read a .npy file; nothing in it is run. Raises as `read_numbers`."""
    try:
        with open(path, "rb") as file:
            magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise UserError(f"{path}: not a .npy file")
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: the file need not hold what it declares
        return checked(str(path), array).copy()
    except UserError:
        raise
    except Exception as error:  # whatever a damaged header leads to
        raise unreadable(path, error) from error


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """Read a .safetensors file: its arrays by name, and its header's remarks. Raises as `read_numbers`."""
    try:
        with safe_open(path, framework=_framework(path)) as file:
            arrays = {key: checked(f"{path}: {key}", _numpy(file.get_tensor(key))) for key in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except UserError:
        raise
    except Exception as error:  # as above; safetensors has an exception of its own for each number format, too
        raise unreadable(path, error) from error


def _framework(path: Path) -> str:
    """Return who reads a .safetensors file: NumPy, or torch where there are kinds of numbers that NumPy has not."""
    with safe_open(path, framework="numpy") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    return "pt" if any(kind.startswith(("BF", "F8")) for kind in kinds) else "numpy"


def _numpy(tensor: Any) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a file that a reader refused, with its reason in a line."""
    text = "".join(char for char in " ".join(str(error).split()) if char.isprintable())
    reason = getattr(error, "strerror", None) or text[:200] or type(error).__name__
    return UserError(f"{path}: cannot be read as a {path.suffix} array: {reason}")


def checked(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array of finite numbers, not more than the pixels that Pillow deems safe.

    Raises:
        UserError: it is none.
    """
    if array.dtype.kind not in "buif":
        raise UserError(f"{name}: expected numbers, found {array.dtype}")
    limit = 3 * (Image.MAX_IMAGE_PIXELS or 0)
    if limit and array.size > limit:
        raise UserError(f"{name}: holds more than {limit} values")
    if not np.isfinite(array).all():
        raise UserError(f"{name}: holds NaN or infinity")
    return array


def read_grey(path: Path) -> np.ndarray:
    """Read a picture's grey values (H, W), upright, with all their bits; its colour profile counts for nothing.

    Raises:
        UserError: as `read_numbers`.
    """
    deep = read_deep(path)
    if deep is not None:
        if deep.alpha is not None and deep.alpha.min() < 1:
            raise UserError(f"{path}: it is partly transparent; save it without an alpha channel")
        values = deep.values.astype(np.float64)
        if deep.span is not None and deep.span[0] > deep.span[1]:
            values = deep.span[0] - values
        return values[..., 0] if values.shape[2] == 1 else values @ (0.299, 0.587, 0.114)  # as Pillow weighs them
    with opened(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError("it is partly transparent; save it without an alpha channel")
        return np.asarray(image.convert("L"), dtype=np.float64)


def read_deep(path: Path, content: bytes | None = None, frame: int = 0) -> DeepPicture | None:
    """Return the values of a picture with more than 8 bits, arguments as `read_header`; None for others."""
    reader = read_header(path, content, frame).reader
    if reader == "dicom":
        return dicom_files.read_deep(path, content, frame)
    why: UserError | None = None
    if reader == "tiff":
        try:
            return tiff_files.read_deep(path, content, frame)
        except tiff_files.NeedsCodecError as error:
            why = error
    try:
        return deep_by_pillow.read_deep(path, content, frame, lambda level, text: None)
    except UserError as error:  # where Pillow cannot either, the first reason is the true one
        raise why or error from None
