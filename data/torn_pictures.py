"""Pictures of which the end is missing, told by a few bytes: a copy that broke off, a disk that was full."""

import os

from PIL import Image

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# Where a TIFF says where its strips or tiles are, and how long.
TIFF_PARTS = ((273, 279), (324, 325))


def looks_whole(path: str | os.PathLike, image: Image.Image) -> bool:
    """Tell whether all of a picture's file is there, as far as its last bytes and its header say.

    False does not mean that it is torn, only that one has to decode it to know: some programs append to a file, or
    leave out what marks its end.

    Args:
        path: the file.
        image: what Pillow has opened it as.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(-min(size, 64), os.SEEK_END)
        tail = file.read()
    if image.format == "JPEG":
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if image.format == "PNG":
        return tail.endswith(PNG_END)
    if image.format == "GIF":
        return tail.rstrip(b"\0").endswith(b";")
    if image.format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if image.format == "BMP":
        return 0 < int.from_bytes(head[2:6], "little") <= size
    return image.format == "TIFF" and _tiff_end(image) <= size


def _tiff_end(image: Image.Image) -> float:
    """Where the last strip or tile of the first picture ends; infinity where the header does not say."""
    tags, ends = image.tag_v2, [float("inf")]
    for offsets, lengths in TIFF_PARTS:
        if offsets in tags and lengths in tags:
            ends = [start + length for start, length in zip(tags[offsets], tags[lengths], strict=True)]
    return max(ends, default=float("inf"))
