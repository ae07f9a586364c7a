"""Pictures with more than 8 bits a value: what a reader finds in a file, and its way to [-1, 1]. Imports no torch."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.colour import Say, Straight, managed_values
from util.errors import UserError
from util.settings import Span

# What a viewer has to do with stored pixels, by their EXIF or TIFF orientation.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True)
class DeepPicture:
    """Values as they are stored, upright.

    Attributes:
        values: (H, W, C) with C of 1 or 3.
        span: the values of black and white; None where the file does not say.
        alpha: (H, W) from 0 (transparent) to 1; None where all is opaque.
        is_premultiplied: whether the values were multiplied by alpha.
        profile: the embedded colour profile.
        bits_are_told: whether the file itself says how many bits are used.
        remark: what of the file is not in these values.
    """

    values: np.ndarray
    span: Span | None
    alpha: np.ndarray | None = None
    is_premultiplied: bool = False
    profile: bytes | None = None
    bits_are_told: bool = False
    remark: str = ""


def span_of(dtype: np.dtype) -> Span | None:
    """Return what is black and what is white in 8 or 16 unsigned bits; None for other numbers."""
    return (0.0, float(np.iinfo(dtype).max)) if dtype.kind == "u" and dtype.itemsize <= 2 else None


def to_range(picture: DeepPicture, span: Span | None, say: Say) -> Straight:
    """Return a picture as sRGB, float64: black is -1 and white 1.

    Args:
        span: the values of black and white, instead of what the file says. Floats outside it are kept, beyond [-1, 1].

    Raises:
        UserError: neither says what is black and white, or a value is not finite.
    """
    if picture.remark:
        say(logging.WARNING, picture.remark)
    if picture.values.dtype.kind == "c":
        raise UserError("it holds complex numbers")
    values = picture.values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError("it holds NaN or infinity")
    low, high = span or picture.span or _guessed(picture.values, say)
    if span is None and not picture.bits_are_told:
        warn_of_unused_bits(picture.values, say)
    unit = (values - low) / (high - low)
    alpha = None if picture.alpha is None or picture.alpha.min() >= 1 else picture.alpha
    if alpha is not None and picture.is_premultiplied:  # before the profile, which is not linear
        unit = np.divide(unit, alpha[..., None], out=np.zeros_like(unit), where=alpha[..., None] > 0)
    if picture.profile is not None:
        unit = managed_values(unit, picture.profile, say)
    return Straight(unit * 2 - 1, alpha)


def _guessed(values: np.ndarray, say: Say) -> Span:
    """Return (0, 1) for floats within it, which is what programs write."""
    low, high = values.min(), values.max()
    if values.dtype.kind != "f" or low < 0 or high > 1:
        raise UserError(
            f"its values, {values.dtype} from {low:g} to {high:g}, have no agreed range: say which are black and white "
            "(data.range=[LOW, HIGH], or measurement.range for a measurement)"
        )
    say(logging.INFO, "its values are floats from 0 to 1: 0 is read as black and 1 as white")
    return 0.0, 1.0


def warn_of_unused_bits(values: np.ndarray, say: Say) -> None:
    """Say that a picture of 16 bits may have fewer: 10, 12 or 14 of a camera, with the top bits never used."""
    if values.dtype != np.uint16:
        return
    bits = max(8, int(values.max()).bit_length())
    bits += bits % 2
    if bits < 16:
        white = 2**bits - 1
        say(
            logging.WARNING,
            f"no value is above {white} of 65535: if it holds {bits} bits, it is read too dark; "
            f"data.range=[0, {white}] (measurement.range for a measurement) makes {white} white",
        )
