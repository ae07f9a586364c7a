"""Colours as a viewer shows them: embedded profiles to sRGB, transparency over white. Imports no torch."""

import io
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from data import icc_profile
from data.png_colours import embedded_profile

# Says something of a picture: a level of `logging`, and the words.
Say = Callable[[int, str], None]

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a profile: the mode of pictures that it describes
_SAME = 1  # levels of 255; profiles of sRGB differ by this from one another


class Straight(NamedTuple):
    """A picture's own colours, and how much of each pixel they cover.

    Attributes:
        pixels: sRGB, (H, W, C) with C of 1 or 3: uint8, or float64 with black at -1 and white at 1.
        alpha: (H, W) from 0 (transparent) to 1; None where all is opaque.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None


def over_white(picture: Straight, say: Say) -> np.ndarray:
    """Return a picture's pixels with the transparent ones laid over white."""
    pixels, alpha = picture
    if alpha is None:
        return pixels
    say(logging.INFO, "its transparent parts are laid over white")
    white = 255 if pixels.dtype == np.uint8 else 1
    laid = pixels * alpha[..., None] + white * (1 - alpha[..., None])
    return np.rint(laid).astype(np.uint8) if pixels.dtype == np.uint8 else laid


def to_srgb(image: Image.Image, say: Say) -> Straight:
    """Return a decoded picture of 8 bits as sRGB.

    An embedded profile is heeded (littleCMS, perceptual intent); CMYK without one is converted as Pillow does.
    """
    profile = embedded_profile(image.info)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
        alpha = image.getchannel("A")
    image = _opaque(image)
    if profile:
        image = _managed(image, profile, say)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    if alpha is None or alpha.getextrema() == (255, 255):
        return Straight(pixels)
    return Straight(pixels, np.asarray(alpha) / 255)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _managed(image: Image.Image, profile: bytes, say: Say) -> Image.Image:
    """Convert a picture from its profile to sRGB."""
    try:
        mode, name = described(profile)
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if image.mode != mode:
            raise ValueError(f"the profile is for {mode}, and the picture is {image.mode}")
        transform = _transform(profile)
        if transform is None:
            return image
        converted = ImageCms.applyTransform(image, transform)
        if converted is None:
            raise ValueError("littleCMS gave no picture")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        say(logging.WARNING, f"its colour profile cannot be used, and it is read as sRGB: {error}")
        return image
    say(logging.INFO, f"converted from its colour profile ({name}) to sRGB")
    return converted


@lru_cache(maxsize=8)
def described(profile: bytes) -> tuple[str, str]:
    """Return the mode of the pictures that a profile describes, and the profile's name.

    Raises:
        OSError, ValueError: it is no profile of such pictures.
    """
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in _SPACES:
        raise ValueError(f"it describes {space} colours")
    return _SPACES[space], ImageCms.getProfileDescription(opened).strip()


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return what converts from a profile to sRGB; None where that changes nothing."""
    mode, _ = described(profile)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    # For grey it makes a table, 10 levels off where the curve is steep; for colours none, and is 10 times as fast.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    return None if mode != "CMYK" and _is_identity(transform, mode) else transform


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tell whether colours all over the range stay as they are."""
    levels = np.linspace(0, 255, 18 if mode == "RGB" else 256).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(18, -1, 3) if mode == "RGB" else levels[None]
    before = Image.fromarray(colours)
    after = ImageCms.applyTransform(before, transform)
    if after is None:
        raise ValueError("littleCMS gave no picture")
    difference = np.asarray(after).astype(int) - np.asarray(before.convert("RGB"))
    return bool(np.abs(difference).max() <= _SAME)


def managed_values(values: np.ndarray, profile: bytes, say: Say) -> np.ndarray:
    """Convert values (H, W, C) in [0, 1] from a profile to sRGB: at full depth where it is one of curves and colorants,
    else with the 8 bits that littleCMS has in Pillow.
    """
    try:
        mode, name = described(profile)
        if _transform(profile) is None:
            return values
        if len(mode) < values.shape[2] or mode == "CMYK":
            raise ValueError(f"it is one of {mode}")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        say(logging.WARNING, f"its colour profile cannot be used, and it is read as sRGB: {error}")
        return values
    try:
        converted = icc_profile.to_srgb(np.repeat(values, 3, axis=2) if _is_grey(values, mode) else values, profile)
    except ValueError:
        return _managed_levels(values, profile, say)
    say(logging.INFO, f"converted from its colour profile ({name}) to sRGB")
    return converted


def _is_grey(values: np.ndarray, mode: str) -> bool:
    return values.shape[2] == 1 and mode == "RGB"


def _managed_levels(values: np.ndarray, profile: bytes, say: Say) -> np.ndarray:
    levels = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    image = _managed(Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0]), profile, say)
    say(logging.WARNING, "its colour profile is converted with 8 bits; its finer steps are lost")
    return np.asarray(image).reshape(*values.shape[:2], -1) / 255
