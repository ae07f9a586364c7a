"""Pictures of which the end is missing, told by a few bytes: a copy that broke off, a disk that was full."""

import os
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from data.picture_files import stream
from util.errors import UserError

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# Where a TIFF says where its strips or tiles are, and how long.
TIFF_PARTS = ((273, 279), (324, 325))


def looks_whole(path: str | Path, image: Image.Image, content: bytes | None = None) -> bool:
    """Tell whether all of a picture's file is there, as far as its last bytes and its header say.

    False does not mean that it is torn, only that one has to decode it to know: some programs append to a file, or
    leave out what marks its end.

    Args:
        path: the file.
        image: what Pillow has opened it as.
        content: its bytes, where they were read already.
    """
    with stream(path, content) as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, 64), os.SEEK_END)
        tail = file.read()
    if image.format in ("JPEG", "MPO"):
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if image.format == "PNG":
        return tail.endswith(PNG_END)
    if image.format == "GIF":
        return tail.rstrip(b"\0").endswith(b";")
    if image.format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if image.format == "BMP":
        return 0 < int.from_bytes(head[2:6], "little") <= size
    return isinstance(image, TiffImageFile) and _tiff_end(image) <= size


def refuse_missing_strips(path: str | Path, image: Image.Image) -> None:
    """Raise UserError where a TIFF lists fewer strips or tiles than its size takes: Pillow leaves the others black."""
    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    width, height = tags[256], tags[257]
    parts = -(-width // tags.get(322, width)) * -(-height // tags.get(323, tags.get(278, height)))
    found = len(tags.get(273) or tags.get(324) or ())
    if 0 < found < parts:
        raise UserError(f"{str(path)!r}: cannot read this picture: {found} of its {parts} strips or tiles are there")


def _tiff_end(image: TiffImageFile) -> float:
    """Where the last strip or tile of the first picture ends; infinity where the header does not say."""
    tags, ends = image.tag_v2, [float("inf")]
    for offsets, lengths in TIFF_PARTS:
        if offsets in tags and lengths in tags:
            ends = [start + length for start, length in zip(tags[offsets], tags[lengths], strict=True)]
    return max(ends, default=float("inf"))
