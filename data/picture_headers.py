"""The header of a picture's file: size, frames, and which reader it is for. Imports no torch."""

import os
import struct
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from data import dicom_files, tiff_files
from data.picture_files import file_head, opened, stream
from data.torn_pictures import looks_whole, refuse_missing_strips
from util.errors import UserError
from util.files import version_of

Reader = Literal["pillow", "tiff", "dicom"]  # ``tiff`` for more than 8 bits
MOVING = ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")  # what may have frames; of a JPEG they are previews
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339  # tags of a TIFF
LATE_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # a PNG's chunks of text that have an orientation


class Header(NamedTuple):
    """The header of one frame.

    Attributes:
        height, width: upright.
        frames: of the file.
        reader: which module reads the pixels.
        is_whole: whether the file's last bytes are there; False means that one has to decode it to know.
        is_turned: whether height and width are exchanged in the file.
    """

    height: int
    width: int
    frames: int
    reader: Reader
    is_whole: bool
    is_turned: bool = False


def read_header(path: str | Path, content: bytes | None = None, frame: int = 0) -> Header:
    """Read a picture's header; nothing is decoded.

    The way to a late frame leads past all before it, so those of a file are read together, and kept.

    Args:
        content: the file's bytes where they were read already; ``path`` is then only what errors call it.

    Raises:
        UserError: the file is missing, no picture of a known format, has no such frame, or declares more pixels than
            Pillow deems safe (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    file_head(path, content)
    kept = _kept(str(path), _version(path, content)) if frame else {}
    if frame and not kept:
        kept.update(_all_headers(path, content))
    return kept[frame] if frame in kept else _read_one(path, content, frame)


@lru_cache(maxsize=4)
def _kept(path: str, version: tuple[int, ...]) -> dict[int, Header]:
    """Return what is kept of a version of a file: at first nothing."""
    return {}


def _version(path: str | Path, content: bytes | None) -> tuple[int, ...]:
    if content is not None:
        return len(content), zlib.crc32(content)
    return version_of(path)


def _all_headers(path: str | Path, content: bytes | None) -> dict[int, Header]:
    """Return the headers of the frames up to the first that has none: `_read_one` says what is wrong with it."""
    found = {}
    with suppress(UserError), opened(path, content) as image:
        for frame in range(getattr(image, "n_frames", 1)):
            image.seek(frame)
            found[frame] = _of_opened(image, path, content) or _of_tiff(path, content, frame)
    return found


def _read_one(path: str | Path, content: bytes | None, frame: int) -> Header:
    head = file_head(path, content)
    if dicom_files.is_dicom(head):
        return Header(*dicom_files.read_header(path, content), "dicom", is_whole=False)
    try:
        with opened(path, content) as image:
            image.seek(frame)
            header = _of_opened(image, path, content)
            if header is not None:
                return header
    except UserError:
        if not head.startswith(tiff_files.MAGIC):
            raise
        try:
            return _of_tiff(path, content, frame)
        except UserError:
            pass  # Pillow knows more of what may be wrong
        raise
    return _of_tiff(path, content, frame)


def _of_opened(image: Image.Image, path: str | Path, content: bytes | None) -> Header | None:
    """Return the header of the frame that Pillow is at; None where Pillow would cut bits."""
    if _is_deep_tiff(image):
        return None
    refuse_missing_strips(path, image)
    width, height = image.size
    is_turned = _orientation(image, path, content) in (5, 6, 7, 8)
    if is_turned:
        width, height = height, width
    frames = getattr(image, "n_frames", 1) if image.format in MOVING else 1
    return Header(height, width, frames, "pillow", looks_whole(path, image, content), is_turned)


def _orientation(image: Image.Image, path: str | Path, content: bytes | None) -> int:
    if image.format == "TIFF":  # Pillow turns its size itself
        return 1
    if image.format == "PNG" and _tells_late(path, content):
        image.load()
    exif = Image.Image.getexif(image)  # PNG's own always decodes the pixels, to see what is behind them
    return exif.get(ExifTags.Base.Orientation, 1)


def _tells_late(path: str | Path, content: bytes | None) -> bool:
    """Tell whether behind the pixels of a PNG there is what may say how they are turned."""
    is_behind = False
    with stream(path, content) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            start = file.read(min(length, 32)) if is_behind and kind != b"IDAT" else b""
            if (is_behind and kind == b"eXIf") or start.startswith(LATE_TEXTS):
                return True
            is_behind |= kind == b"IDAT"
            file.seek(length - len(start) + 4, os.SEEK_CUR)
    return False


def _of_tiff(path: str | Path, content: bytes | None, frame: int) -> Header:
    header = tiff_files.read_header(path, content, frame)
    is_turned = header.orientation in (5, 6, 7, 8)
    height, width = (header.height, header.width)[:: -1 if is_turned else 1]
    return Header(height, width, header.frames, "tiff", header.is_whole, is_turned)


def _is_deep_tiff(image: Image.Image) -> bool:
    """Tell whether Pillow would cut bits: from colours of more than 8, the range from 32 bits, or signs."""
    if not isinstance(image, TiffImageFile):
        return False
    tags = image.tag_v2
    is_unsigned = max(tags.get(SAMPLE_FORMAT, (1,))) == 1
    is_known = tags.get(tiff_files.PHOTOMETRIC, 0) in (0, 1, 2)
    return (max(tags.get(BITS_PER_SAMPLE, (1,))) > 8 or not is_unsigned) and is_known
