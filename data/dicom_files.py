"""DICOM files, read by pydicom where that is installed. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from data.deep_pictures import DeepPicture, span_of
from data.picture_files import stream, too_many_pixels
from util.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset


def is_dicom(head: bytes) -> bool:
    """Tell by a file's first 132 bytes whether it is DICOM."""
    return head[128:132] == b"DICM"


class DicomHeader(NamedTuple):
    """Height, width and the number of frames."""

    height: int
    width: int
    frames: int


def read_header(path: str | Path, content: bytes | None) -> DicomHeader:
    """Read what a file says of itself.

    Raises:
        UserError: it is damaged, holds no picture, declares more pixels than Pillow deems safe, or pydicom is not
            installed.
    """
    with _dataset(path, content, pixels=False) as dataset:
        height, width = int(dataset.Rows), int(dataset.Columns)
        if Image.MAX_IMAGE_PIXELS and height * width > Image.MAX_IMAGE_PIXELS:
            raise UserError(too_many_pixels(repr(str(path))))
        return DicomHeader(height, width, int(dataset.get("NumberOfFrames") or 1))


def read_deep(path: str | Path, content: bytes | None, frame: int) -> DeepPicture:
    """Read a frame: grey values after the rescale slope and intercept (Hounsfield units, of a CT), or RGB, a palette's
    too.

    Black and white are the least and the largest value that the stored bits can make. The window is for display: no
    value is cut by it.

    Raises:
        UserError: as `read_header`; its pixels cannot be decoded.
    """
    header = read_header(path, content)
    with _dataset(path, content, pixels=True) as dataset:
        from pydicom.pixels import apply_color_lut, apply_rescale, pixel_array

        values = pixel_array(dataset, index=min(frame, header.frames - 1))
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            colours = apply_color_lut(values, dataset)[..., :3]
            return DeepPicture(colours, span_of(colours.dtype), bits_are_told=True)
        bits = int(dataset.BitsStored)
        stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
        if values.ndim == 3:
            return DeepPicture(values, (float(stored[0]), float(stored[1])), bits_are_told=True)
        low, high = (float(value) for value in apply_rescale(np.array(stored, dtype=np.float64), dataset))
        span = (high, low) if dataset.PhotometricInterpretation == "MONOCHROME1" else (low, high)
        values = np.asarray(apply_rescale(values, dataset), dtype=np.float64)
        return DeepPicture(values[..., None], span, bits_are_told=True)


@contextmanager
def _dataset(path: str | Path, content: bytes | None, pixels: bool) -> Iterator["Dataset"]:
    try:
        import pydicom
    except ImportError:
        raise UserError(f"{str(path)!r}: reading DICOM needs pydicom: pip install pydicom") from None
    try:
        with stream(path, content) as file:
            yield pydicom.dcmread(file, stop_before_pixels=not pixels)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever damaged bytes lead to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{str(path)!r}: cannot read this DICOM file: {reason}") from error
