"""More than 8 bits a value by Pillow, which keeps those of grey, and of colours one byte. Imports no torch."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from data.colour import Say
from data.deep_pictures import UPRIGHT, DeepPicture, span_of
from data.picture_files import opened, stream
from data.png_colours import embedded_profile
from data.tiff_files import PHOTOMETRIC, WHITE_IS_ZERO

# How 16 bits are stored, by Pillow's names, and the same with the two bytes exchanged.
_EXCHANGED = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


def read_deep(path: Path, content: bytes | None, frame: int, say: Say) -> DeepPicture | None:
    """Return a frame's values; None where 8 bits are all that it has, or all that can be had.

    Raises:
        UserError: it cannot be decoded.
    """
    with opened(path, content) as image:
        image.seek(frame)
        is_grey = image.mode in ("I", "F") or image.mode.startswith("I;16")
        exchanged = None if is_grey else _exchanged(image, say)
        if not is_grey and exchanged is None:
            bits = _avif_bits(path, content) if image.format == "AVIF" else image.info.get("bit_depth", 8)  # of HEIC
            if bits > 8:
                say(logging.WARNING, f"only 8 of its {bits} bits are read")
            return None
        values = np.array(image)
        if image.mode.startswith("I;16") or exchanged:
            values = values.astype(np.uint16)
        # Not before the pixels: EXIF behind them is read with them.
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1), UPRIGHT[1])
        key, profile = image.info.get("transparency"), embedded_profile(image.info)
        # Pillow turns these round where they have 8 bits, and leaves them as they are where they have 16.
        is_negative = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    values = values[..., None] if is_grey else values
    if exchanged is not None:
        values = values * 256 + _low_bytes(path, content, frame, exchanged)
    alpha = values[..., 3] / 65535 if values.shape[2] == 4 else None
    if alpha is None and key is not None:  # one value or colour that stands for transparent
        alpha = (values != np.array(key)).any(-1).astype(np.float64)
    opaque, span = turn(values[..., :3]), span_of(values.dtype)
    if span is not None and is_negative:
        span = span[::-1]
    return DeepPicture(opaque, span, None if alpha is None else turn(alpha), profile=profile)


def _avif_bits(path: Path, content: bytes | None) -> int:
    """Return how many bits the values of an AVIF file have, by the configuration of its coding (av1C, at its start)."""
    with stream(path, content) as file:
        configuration = re.search(rb"av1C\x81.(.)", file.read(2**16), re.DOTALL)
    flags = configuration[1][0] if configuration else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _exchanged(image: Image.Image, say: Say) -> str | None:
    """Return how 16-bit colours are stored, with their bytes exchanged; None for 8 bits."""
    if not isinstance(image, ImageFile) or not image.tile:
        return None
    mode, _, order = str(_arguments(image.tile[0].args)[0]).partition(";")
    if order not in _EXCHANGED:
        return None
    if mode not in ("RGB", "RGBA"):
        say(logging.WARNING, f"only 8 of its 16 bits ({mode}) are read")
        return None
    return f"{mode};{_EXCHANGED[order]}"


def _low_bytes(path: Path, content: bytes | None, frame: int, raw_mode: str) -> np.ndarray:
    """Decode once more, and say that bytes are in the other order: Pillow then keeps the low ones."""
    with opened(path, content) as image:
        image.seek(frame)
        if isinstance(image, ImageFile):
            image.tile = [tile._replace(args=(raw_mode, *_arguments(tile.args)[1:])) for tile in image.tile]
        return np.array(image, dtype=np.uint16)


def _arguments(args: Any) -> tuple[Any, ...]:
    """Return a tile's arguments for its decoder, of which the first is how pixels are stored."""
    return args if isinstance(args, tuple) else (args,)
