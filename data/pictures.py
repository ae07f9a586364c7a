"""Picture files on disk: finding, naming and checking them, reading them as 8-bit RGB. Imports no torch."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data.picture_list import read_list
from data.torn_pictures import looks_whole
from util.errors import UserError
from util.picture_files import SUFFIXES, opened
from util.registry import unknown

RESIZE_METHODS = ("error", "center_crop", "resize")
MIN_SIDE = 8  # pixels; below it a picture has not even one cell of an f = 8 latent
MAX_NAME_BYTES = 200  # of the usual limit of 255, so that endings such as `_s0.safetensors` still fit


class Picture(NamedTuple):
    """A picture file and the name under which its results are written (no suffix, no folder)."""

    name: str
    path: Path


def find_pictures(root: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Picture]:
    """List the pictures (files of these suffixes) below a folder, sorted by relative path.

    Where ``root`` is a picture, it is that one; where it is a text file (.txt), those that it names, in its order
    (`read_list`), each called by its path without ``..`` and the root.

    Subfolders are searched; links are followed, and a folder that is reached twice (a loop of links) is listed once.
    Hidden files and folders are left out. A link that leads nowhere is listed: reading it says so.

    Raises:
        UserError: ``root`` does not exist, a folder or list cannot be read, or there is no picture.
    """
    root = Path(root)
    if os.path.isfile(root) and root.suffix.lower() == ".txt":
        paths = read_list(root)
        names = picture_names([_below(path) for path in paths], paths)
        return [Picture(name, root.parent / path) for name, path in zip(names, paths, strict=True)]
    if os.path.isfile(root):
        return [Picture(picture_names([Path(root.name)])[0], root)]
    if not os.path.isdir(root):
        raise UserError(f"{str(root)!r}: no such file or folder of pictures")
    paths = sorted(_walk(root, suffixes), key=lambda path: path.as_posix())
    if not paths:
        raise UserError(f"{str(root)!r}: no pictures in this folder (looked for {' '.join(suffixes)})")
    return [Picture(name, root / path) for name, path in zip(picture_names(paths), paths, strict=True)]


def _walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the paths, relative to ``root``, of all files of these suffixes."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{str(error.filename)!r}: cannot read this folder: {error.strerror}") from None

    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            path = Path(folder, name)
            is_special = os.path.exists(path) and not os.path.isfile(path)  # a pipe would block its reader for ever
            if path.suffix.lower() in suffixes and not name.startswith(".") and not is_special:
                yield path.relative_to(root)


def picture_names(paths: list[Path], whole: list[Path] | None = None) -> list[str]:
    """Give each of the relative ``paths`` a name of its own, fit for a file name.

    The name is the stem, after the names of its folders (``a/b.png`` is ``a_b``). Names that clash keep their suffix
    (``b.png`` and ``b.jpg`` are ``b_png`` and ``b_jpg``); should that clash too, or be too long for a file system, a
    hash of the path is added, of that in ``whole`` where given. Control characters become ``_``. A name never depends
    on the order of the files.
    """
    names = [_printable("_".join((*path.parent.parts, path.stem))) for path in paths]
    names = [
        f"{name}_{path.suffix[1:]}" if clash else name
        for name, path, clash in zip(names, paths, _clashes(names), strict=True)
    ]
    return [
        _with_hash(name, path) if clash or len(name.encode()) > MAX_NAME_BYTES else name
        for name, path, clash in zip(names, whole or paths, _clashes(names), strict=True)
    ]


def name_alone(path: Path, root: str | Path) -> str:
    """Return the name that a picture of `find_pictures` would have if there were no other.

    What is random for a picture is drawn by it, so that a picture with the same stem beside it, which changes the names
    of both, changes no result. The two then have the same draws.
    """
    folder = Path(root) if os.path.isdir(root) else Path(root).parent
    own = path.relative_to(folder) if path.is_relative_to(folder) else path
    return picture_names([_below(own)], [own])[0]


def _below(path: Path) -> Path:
    """Leave out of a path what leads out of its folder: ``..`` and the root."""
    return Path(*(part for part in path.parts if part not in ("..", path.anchor)))


def _clashes(names: list[str]) -> list[bool]:
    count = Counter(names)
    return [count[name] > 1 for name in names]


def _printable(text: str) -> str:
    """Replace control characters, line separators and undecodable bytes (lone surrogates) by underscores."""
    return "".join("_" if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)


def _with_hash(name: str, path: Path) -> str:
    digest = hashlib.sha256(os.fsencode(path.as_posix())).hexdigest()[:8]
    return f"{name.encode()[: MAX_NAME_BYTES - 9].decode(errors='ignore')}_{digest}"


def read_size(path: str | Path) -> tuple[int, int]:
    """Return a picture's (height, width) as displayed (EXIF orientation applied), from its header, without decoding.

    Raises:
        UserError: the file is missing, no picture of a known format, declares more pixels than Pillow deems safe
            (``PIL.Image.MAX_IMAGE_PIXELS``), or fewer than ``MIN_SIDE`` a side.
    """
    with opened(path) as image:
        width, height = image.size
        # Pillow rotates TIFF sizes itself; for a PNG without EXIF in its header, asking would decode the whole picture.
        ask = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if ask and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            width, height = height, width
    if min(height, width) < MIN_SIDE:
        raise UserError(f"{str(path)!r}: {width}x{height} pixels are too few; {MIN_SIDE}x{MIN_SIDE} is the least")
    return height, width


def check_picture(path: str | Path, size: tuple[int, int] | None = None, resize: str = "error") -> None:
    """Check that a picture can be read and fits, from its header; only one whose end seems to be missing is decoded.

    Args:
        size: (height, width) that is wanted; None takes any.
        resize: one of ``RESIZE_METHODS``; with ``"error"`` the picture must have that size already.

    Raises:
        UserError: as ``read_size``; the end is missing; the size is another; ``resize`` is none of the methods.
    """
    if resize not in RESIZE_METHODS:
        raise unknown("resize method", resize, RESIZE_METHODS)
    height, width = read_size(path)
    with opened(path) as image:
        if not looks_whole(path, image):
            image.load()
    if size is not None and resize == "error" and (height, width) != size:
        raise UserError(
            f"{str(path)!r} is {width}x{height} (width x height) where {size[1]}x{size[0]} is needed: "
            "bring it to that size, or pass --resize center_crop or --resize resize"
        )


def read_picture(path: str | Path, size: tuple[int, int] | None = None, resize: str = "error") -> Image.Image:
    """Read a picture as 8-bit RGB, upright, with ``size`` (height, width) when one is given.

    Grey and palette pictures become RGB, transparency is laid over white, 16 bits are scaled to 8, the EXIF
    orientation is applied, and of an animation the first frame is taken. ``center_crop`` scales the picture until it
    covers ``size`` and cuts what sticks out; ``resize`` stretches it. Both are bicubic with antialiasing.

    Raises:
        UserError: as ``check_picture``, and when the pixels cannot be decoded (a truncated file, say).
    """
    check_picture(path, size, resize)
    with opened(path) as image:
        image = _to_rgb(ImageOps.exif_transpose(image))
    if size is None or image.size == size[::-1]:
        return image
    if resize == "error":  # an orientation that only decoding reveals
        raise UserError(f"{str(path)!r} is {image.width}x{image.height} upright where {size[1]}x{size[0]} is needed")
    if resize == "center_crop":
        return ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    return image.resize(size[::-1], Image.Resampling.BICUBIC)


def decode_picture(name: str, content: bytes) -> Image.Image:
    """As `read_picture`, whatever the size, from the bytes of a file called ``name`` (a member of an archive, say)."""
    with opened(name, content) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded picture of any mode to 8-bit RGB."""
    if image.mode.startswith("I;16"):
        image = _sixteen_to_eight_bits(image)
    elif image.mode in ("I", "F"):
        raise ValueError("32 bits a value have no agreed range; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits (65535 to 255); Pillow's own conversion would clip all above 255 to white."""
    values = np.asarray(image).astype(np.float64)
    grey = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if "transparency" in image.info:  # one 16-bit grey value that stands for transparent
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
