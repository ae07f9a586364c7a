"""Opening picture files that may be anything, by Pillow and its plug-ins. Imports no torch."""

import importlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features
from PIL.PngImagePlugin import PngImageFile

from util.errors import UserError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".heic", ".heif", ".avif", ".dcm"),
)
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # what is opened, whatever a file's suffix says
MAX_BYTES = 2**30  # of one picture in an archive: more than any that Pillow deems safe

# Brands of the container that HEIC and AVIF share (ISO/IEC 23000-22): bytes 8 to 11, behind "ftyp".
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_CONTAINER_BRANDS = (b"mif1", b"msf1")  # of any coding


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open a picture, turning whatever its bytes make Pillow raise, inside the ``with`` block too, into UserError.

    With ``content``, those are its bytes, and ``path`` is only what errors call it.
    """
    shown = repr(str(path))
    formats = (*FORMATS, *_plugged_in(shown, file_head(path, content)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd metadata; what matters is raised as well
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path if content is None else io.BytesIO(content), formats=formats) as image:
                _scale_transparent_grey(image)
                yield image
    except (UserError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(too_many_pixels(shown)) from None
    except UnidentifiedImageError:
        size = os.path.getsize(path) if content is None else len(content)
        what = "not a picture of a known format" if size else "an empty file"
        raise UserError(f"{shown}: {what} ({', '.join(FORMATS)}, HEIC, AVIF and DICOM can be read)") from None
    except Exception as error:  # a decoder that meets damaged bytes may raise anything
        raise UserError(f"{shown}: cannot read this picture: {error or type(error).__name__}") from error


def _scale_transparent_grey(image: Image.Image) -> None:
    """Bring the grey that stands for transparent in a PNG of 2 or 4 bits to 8, as Pillow does with the pixels only."""
    raw_mode = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else None
    bits = {"L;2": 2, "L;4": 4}.get(str(raw_mode))
    key = image.info.get("transparency")
    if bits is not None and isinstance(key, int) and key < 2**bits:
        image.info["transparency"] = key * 255 // (2**bits - 1)


def too_many_pixels(shown: str) -> str:
    """Return the message for a picture whose header declares more pixels than Pillow deems safe."""
    return f"{shown}: declares more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down first"


def stream(path: str | Path, content: bytes | None) -> BinaryIO:
    """Open a file, or the bytes that were read of one, for reading."""
    return open(path, "rb") if content is None else io.BytesIO(content)


def file_head(path: str | Path, content: bytes | None) -> bytes:
    """Return the first 160 bytes of a file, which tell its format.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    if content is None and not os.path.isfile(path):
        raise UserError(f"{str(path)!r}: no such file")
    try:
        with stream(path, content) as file:
            return file.read(160)
    except OSError as error:
        raise UserError(f"{str(path)!r}: cannot read this picture: {error.strerror or error}") from error


def _plugged_in(shown: str, head: bytes) -> tuple[str, ...]:
    """Return the format that a plug-in of Pillow opens, once that is loaded; none where Pillow needs no plug-in.

    Raises:
        UserError: the plug-in is not installed.
    """
    if head[4:8] != b"ftyp":
        return ()
    brand = head[8:12]
    if brand in _CONTAINER_BRANDS:  # what is inside is among the compatible brands
        compatible = head[16 : min(int.from_bytes(head[:4], "big"), len(head))]
        brand = next((one for one in _AVIF_BRANDS if one in compatible), brand)
    if brand in _AVIF_BRANDS:
        if not features.check("avif"):
            _load(shown, "AVIF", "pillow_avif", "pillow-avif-plugin")
        return ("AVIF",)
    if brand in _HEIC_BRANDS:
        _load(shown, "HEIC", "pillow_heif", "pillow-heif").register_heif_opener()
        return ("HEIF",)
    return ()


def _load(shown: str, kind: str, module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{shown}: reading {kind} needs {package}: pip install {package}") from None
