"""Measurements that a person has, without a truth: degraded pictures, and arrays."""

import logging
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.dataloader import to_tensor
from data.pictures import MIN_SIDE, Picture, find_pictures, name_alone, read_picture
from util.array_files import ARRAY_SUFFIXES, read_npy, read_numbers, read_safetensors
from util.errors import UserError
from util.picture_files import SUFFIXES, opened

logger = logging.getLogger("resample")

MADE_BY = "made_by"  # the remark in the header of a measurement that a run has written


class MeasuredFolder:
    """The measurements below a folder, or one: pictures, .npy and .safetensors files.

    Pictures are read as all are, except that 16-bit grey keeps its depth. An array is (H, W), (C, H, W) or (H, W, C)
    with C of 1 or 3, or whatever else the operator's measurements are without the batch. Unsigned whole numbers span
    the range of their type (255 or 65535 is white, 0 black), bool is black and white, and other numbers are taken as
    they are: those of a picture in [-1, 1], with noise beyond. A .safetensors file holds one array, or the measurement
    as ``y`` and beside it what the operator would draw (``mask``, ``kernel``), as `label/` of a run has.

    Args:
        root: a folder, searched with its subfolders, a file, or a .txt file that lists such (`find_pictures`).
        limit: take only the first so many.

    Attributes:
        names: of all measurements, those beyond the limit too.
        pictures: (name, path) of those within it.

    Raises:
        UserError: there is no such file or folder, or nothing in it.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self.root = root
        found = find_pictures(root, (*SUFFIXES, *ARRAY_SUFFIXES))
        self.names = [picture.name for picture in found]
        self.pictures: list[Picture] = found[:limit]

    def __len__(self) -> int:
        return len(self.pictures)

    def stream_name(self, name: str) -> str:
        """Return what the random streams of a measurement are called: see `data.pictures.name_alone`."""
        return name_alone(dict(self.pictures)[name], self.root)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return ``y`` (1, ...) and the operator's state, where there is any, of a name: float32.

        Raises:
            UserError: it cannot be read, or has no agreed range.
        """
        path = dict(self.pictures)[name]
        try:
            return read_measured(path)
        except UserError as error:
            raise UserError(f"{path.name!r} is not a readable measurement: {error}") from error


def is_run_with_truth(path: Path) -> bool:
    """Tell whether a folder is the `label/` of a run that degraded pictures: truths, and exact measurements."""
    if not path.is_dir():
        return False
    saved = (file for file in path.glob("*.safetensors") if made_by(file))
    return next(path.glob("*.png"), None) is not None and next(saved, None) is not None


def made_by(path: Path) -> str | None:
    """Return what a run has written into a .safetensors file about the settings that made it; None in other files."""
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        return read_safetensors(path)[1].get(MADE_BY)
    except UserError:
        return None


def read_measured(path: Path) -> dict[str, Tensor]:
    """Read one file as `MeasuredFolder.tensors` says."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        arrays, _ = read_safetensors(path)
        if "y" not in arrays and len(arrays) != 1:
            raise UserError(f"{path}: expected the measurement as 'y', found {', '.join(arrays) or 'nothing'}")
        y = arrays.pop("y" if "y" in arrays else next(iter(arrays)))
        state = {key: torch.from_numpy(np.array(value, dtype=np.float32)) for key, value in arrays.items()}
        return {"y": _as_measurement(path, y), **state}
    if suffix == ".npy":
        return {"y": _as_measurement(path, read_npy(path))}
    with opened(path) as image:
        is_deep = image.mode.startswith("I;16") and not image.has_transparency_data
    if is_deep:
        deep = torch.from_numpy(read_numbers(path) / 65535 * 2 - 1).float()
        return {"y": deep.expand(1, 3, -1, -1).contiguous()}
    return {"y": to_tensor(read_picture(path))[None]}


@cache
def _warn_of_range(path: Path) -> None:
    """Say once that a file may be in another range: each is read twice."""
    logger.warning("%s: all values are from 0 to 1; a picture's range here is [-1, 1]", path)


def _as_measurement(path: Path, array: np.ndarray) -> Tensor:
    """Bring an array to the range and layout of a measurement."""
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        array = array / np.iinfo(array.dtype).max * 2 - 1
    elif array.dtype.kind == "b":
        array = array * 2.0 - 1
    elif array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        _warn_of_range(path)
    elif array.dtype.kind != "f":
        raise UserError(f"{path}: {array.dtype} has no agreed range: save uint8, uint16, or floats in [-1, 1]")
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[2] in (1, 3) and array.shape[0] not in (1, 3):
        array = np.moveaxis(array, 2, 0)
    if array.ndim != 4:
        array = array[None]
    if array.shape[0] != 1 or min(array.shape) < 1 or max(array.shape) < MIN_SIDE:
        raise UserError(f"{path}: expected one measurement, (H, W), (C, H, W) or (H, W, C), got shape {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
