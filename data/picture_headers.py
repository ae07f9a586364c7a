"""The header of a picture's file: size, frames, and which reader it is for. Imports no torch."""

from pathlib import Path
from typing import Literal, NamedTuple

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from data import dicom_files, tiff_files
from data.picture_files import file_head, opened
from data.torn_pictures import looks_whole, refuse_missing_strips
from util.errors import UserError

Reader = Literal["pillow", "tiff", "dicom"]  # ``tiff`` for more than 8 bits
MOVING = ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")  # what may have frames; of a JPEG they are previews
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339  # tags of a TIFF


class Header(NamedTuple):
    """The header of one frame.

    Attributes:
        height, width: upright.
        frames: of the file.
        reader: which module reads the pixels.
        is_whole: whether the file's last bytes are there; False means that one has to decode it to know.
    """

    height: int
    width: int
    frames: int
    reader: Reader
    is_whole: bool


def read_header(path: str | Path, content: bytes | None = None, frame: int = 0) -> Header:
    """Read a picture's header; nothing is decoded.

    Args:
        content: the file's bytes where they were read already; ``path`` is then only what errors call it.

    Raises:
        UserError: the file is missing, no picture of a known format, has no such frame, or declares more pixels than
            Pillow deems safe (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    head = file_head(path, content)
    if dicom_files.is_dicom(head):
        return Header(*dicom_files.read_header(path, content), "dicom", is_whole=False)
    try:
        with opened(path, content) as image:
            image.seek(frame)
            if not _is_deep_tiff(image):
                refuse_missing_strips(path, image)
                return _of_pillow(image, path, content)
    except UserError:
        if not head.startswith(tiff_files.MAGIC):
            raise
        try:
            return _of_tiff(path, content, frame)
        except UserError:
            pass  # Pillow knows more of what may be wrong
        raise
    return _of_tiff(path, content, frame)


def _of_pillow(image: Image.Image, path: str | Path, content: bytes | None) -> Header:
    width, height = image.size
    # Pillow rotates TIFF sizes itself; for a PNG without EXIF in its header, asking would decode the whole picture.
    ask = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    if ask and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
        width, height = height, width
    frames = getattr(image, "n_frames", 1) if image.format in MOVING else 1
    return Header(height, width, frames, "pillow", looks_whole(path, image, content))


def _of_tiff(path: str | Path, content: bytes | None, frame: int) -> Header:
    header = tiff_files.read_header(path, content, frame)
    height, width = (header.height, header.width)[:: -1 if header.orientation in (5, 6, 7, 8) else 1]
    return Header(height, width, header.frames, "tiff", header.is_whole)


def _is_deep_tiff(image: Image.Image) -> bool:
    """Tell whether Pillow would cut bits: from colours of more than 8, the range from 32 bits, or signs."""
    if not isinstance(image, TiffImageFile):
        return False
    tags = image.tag_v2
    is_unsigned = max(tags.get(SAMPLE_FORMAT, (1,))) == 1
    is_known = tags.get(tiff_files.PHOTOMETRIC, 0) in (0, 1, 2)
    return (max(tags.get(BITS_PER_SAMPLE, (1,))) > 8 or not is_unsigned) and is_known
