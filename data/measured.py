"""Measurements that a person has, without a truth: degraded pictures, and arrays."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.array_files import ARRAY_SUFFIXES, read_npy, read_safetensors
from data.colour import Say
from data.dataloader import to_tensor
from data.deep_pictures import span_of, warn_of_unused_bits
from data.named_pictures import NamedPictures
from data.picture_files import SUFFIXES
from data.pictures import MIN_SIDE, read_straight
from data.sources import Frames, Source, find_pictures, source_of
from util.errors import UserError
from util.logging import LOGGER, SayOnce
from util.settings import Span

MADE_BY = "made_by"  # the remark in the header of a measurement that a run has written
ALPHA = "alpha channel"  # beside y; no operator's state is called that, since those are keywords


class MeasuredFolder(NamedPictures):
    """The measurements below a folder, or one: pictures, .npy and .safetensors files.

    Pictures are read as all are (`read_straight`). An array is (H, W), (C, H, W) or (H, W, C) with C of 1 or 3, with or
    without a batch of one, or whatever else the operator's measurements are without the batch. Unsigned whole numbers
    span the range of their type (255 or 65535 is white, 0 black), bool is black and white, and other numbers are taken
    as they are: those of a picture in [-1, 1], with noise beyond. A .safetensors file holds one array, or the
    measurement as ``y`` and beside it what the operator would draw (``mask``, ``kernel``), as `label/` of a run has;
    of such a folder the pictures are left out (`holds_saved`).

    Args:
        root: as `find_pictures`.
        limit: take only the first so many.
        frames: of files that have several, ``first`` or ``all``.
        data_root: the folder that the paths in a list begin in; None is the list's own.
        span: the values of black and white in the pictures that were measured. With it, measurements stay in these
            units, and arrays are taken as they are stored.

    Attributes:
        span: as given.
        say_once: logs a line about a file, once.

    Raises:
        UserError: there is no such file or folder, or nothing in it.
    """

    def __init__(
        self,
        root: Path,
        limit: int | None = None,
        frames: Frames = "first",
        data_root: str | Path | None = None,
        span: Span | None = None,
    ) -> None:
        suffixes = (".safetensors",) if holds_saved(Path(root)) else (*SUFFIXES, *ARRAY_SUFFIXES)
        found = find_pictures(root, suffixes, frames, data_root)
        super().__init__(found, limit)
        self.span, self.say_once = span, SayOnce()  # each file is read twice: to check it, and to use it

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return ``y`` (1, ...) and the operator's state, where there is any, of a name: float32.

        Of a picture with transparency ``y`` is its own colours, and `ALPHA` (1, 1, H, W) is from 0 (transparent) to 1:
        the operator decides whether that is its mask, or the colours are laid over white.

        Raises:
            UserError: it cannot be read, or has no agreed range.
        """
        source = self._by_name[name]
        try:
            return read_measured(source, self.span, self.say_once)
        except UserError as error:
            raise UserError(
                f"{Path(source.member or source.path).name!r} is not a readable measurement: {error}"
            ) from error


def holds_saved(path: Path) -> bool:
    """Tell whether a folder holds exact measurements that a run has saved (`label/`); its pictures are of these."""
    return path.is_dir() and any(made_by(file) is not None for file in path.glob("*.safetensors"))


def made_by(path: Path) -> str | None:
    """Return what a run has written into a .safetensors file about the settings that made it; None in other files."""
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        return read_safetensors(path)[1].get(MADE_BY)
    except UserError:
        return None


def read_measured(path: str | Path | Source, span: Span | None = None, say: Say = LOGGER.log) -> dict[str, Tensor]:
    """Read one file as `MeasuredFolder.tensors` says; in the units of ``span`` where that is given."""
    source = source_of(path)
    if source.suffix not in ARRAY_SUFFIXES:
        return _of_picture(source, span, say)
    if source.member is not None:
        raise UserError(f"{source}: arrays in an archive cannot be read: unpack it")
    if source.suffix == ".npy":
        return {"y": _as_measurement(source.path, read_npy(source.path), span, say)}
    arrays, _ = read_safetensors(source.path)
    if "y" not in arrays and len(arrays) != 1:
        raise UserError(f"{source}: expected the measurement as 'y', found {', '.join(arrays) or 'nothing'}")
    y = arrays.pop("y" if "y" in arrays else next(iter(arrays)))
    state = {key: torch.from_numpy(np.array(value, dtype=np.float32)) for key, value in arrays.items()}
    return {"y": _as_measurement(source.path, y, span, say), **state}


def _of_picture(source: Source, span: Span | None, say: Say) -> dict[str, Tensor]:
    pixels, alpha = read_straight(source, span, say)
    picture = to_tensor(pixels)[None]
    y = picture if span is None else (picture + 1) / 2 * (span[1] - span[0]) + span[0]
    return {"y": y} if alpha is None else {"y": y, ALPHA: torch.from_numpy(alpha).float()[None, None]}


def _as_measurement(path: Path, array: np.ndarray, span: Span | None, say: Say) -> Tensor:
    """Bring an array to the range, unless it stays in the units of ``span``, and layout of a measurement."""
    if span is None:
        array = _in_range(path, array, say)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[2] in (1, 3) and array.shape[0] not in (1, 3):
        array = np.moveaxis(array, 2, 0)
    if array.ndim != 4:
        array = array[None]
    if array.shape[0] != 1 or min(array.shape) < 1 or max(array.shape) < MIN_SIDE:
        raise UserError(f"{path}: expected one measurement, (H, W), (C, H, W) or (H, W, C), got shape {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _in_range(path: Path, array: np.ndarray, say: Say) -> np.ndarray:
    """Bring numbers whose type has an agreed range to [-1, 1]; floats stay as they are."""
    agreed = span_of(array.dtype)
    if agreed is not None:
        warn_of_unused_bits(array, lambda level, text: say(level, f"{path}: {text}"))
        return array / agreed[1] * 2 - 1
    if array.dtype.kind == "b":
        return array * 2.0 - 1
    if array.dtype.kind != "f":
        raise UserError(
            f"{path}: {array.dtype} has no agreed range: save uint8, uint16, or floats in [-1, 1], or say which values "
            "are black and white: measurement.range=[LOW, HIGH]"
        )
    if array.size and array.min() >= 0 and array.max() <= 1:
        say(
            logging.WARNING,
            f"{path}: all values are from 0 to 1; a picture's range here is [-1, 1], and measurement.range=[0, 1] "
            "reads it in that one",
        )
    return array
