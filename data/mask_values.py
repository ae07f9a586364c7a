"""Masks as people have them: arrays, pictures in grey, and the alpha channel of pictures. Imports no torch."""

import os
from pathlib import Path

import numpy as np
from PIL import ImageOps

from data.array_choice import CHOICE_SUFFIXES, read_array
from data.array_files import read_deep, read_grey
from data.picture_files import opened
from data.picture_headers import read_header
from data.sources import Source, source_of
from util.errors import UserError


def read_mask_values(text: str) -> tuple[np.ndarray, str]:
    """Read the values of a mask: those of an array (`data.array_choice.read_array`), or of a picture.

    A picture that is transparent somewhere is its alpha channel, any other its grey values.

    Returns:
        (H, W) numbers, 0 or more, and what the largest is called in words.

    Raises:
        UserError: the file cannot be read, or its numbers cannot be a mask's.
    """
    path = Path(text)
    if path.suffix.lower() in CHOICE_SUFFIXES or (not os.path.isfile(text) and "#" in text):
        values = read_array(text, "mask").array
        shape = values.shape
        while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
            values = values[0] if values.shape[0] == 1 else values[..., 0]
        if values.ndim != 2 or not values.size:
            raise UserError(f"{text}: expected an array (H, W), got one of shape {shape}")
        if values.min() < 0:
            raise UserError(f"{text}: holds {values.min():g}: a mask has zeros and ones")
        return values.astype(np.float64), "white (not zero)"
    alpha = read_alpha(source_of(path))
    return (read_grey(path), "white (not zero)") if alpha is None else (alpha, "opaque (not transparent)")


def read_alpha(source: Source) -> np.ndarray | None:
    """Return a picture's alpha channel (H, W), 0 (transparent) to 255, upright; None where it has none, or is opaque.

    Raises:
        UserError: the picture cannot be read.
    """
    content, frame = source.content(), source.frame or 0
    reader = read_header(source.path, content, frame).reader
    deep = None if reader == "pillow" else read_deep(source.path, content, frame)
    if deep is not None:
        alpha = None if deep.alpha is None else 255 * deep.alpha
    else:
        with opened(source.path, content) as image:
            image.seek(frame)
            if not image.has_transparency_data:
                return None
            alpha = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))[..., 3].astype(np.float64)
    return alpha if alpha is not None and alpha.min() < 255 else None
