"""Pictures: their size, whether they can be read, and their pixels as a viewer shows them. Imports no torch."""

import logging
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from data import deep_by_pillow, dicom_files, tiff_files
from data.colour import Say, Straight, over_white, to_srgb
from data.deep_pictures import DeepPicture, to_range
from data.picture_files import opened
from data.picture_headers import Header, read_header
from data.sources import Source, source_of
from util.errors import UserError
from util.logging import LOGGER
from util.settings import Span
from util.words import unknown

ResizeMethod = Literal["error", "center_crop", "resize"]
RESIZE_METHODS = get_args(ResizeMethod)
MIN_SIDE = 8  # pixels; below it a picture has not even one cell of an f = 8 latent


def read_size(picture: str | Path | Source) -> tuple[int, int]:
    """Return a picture's (height, width) as displayed (EXIF orientation applied), from its header, without decoding.

    Raises:
        UserError: as `data.picture_headers.read_header`, or it has fewer than ``MIN_SIDE`` pixels a side.
    """
    source = source_of(picture)
    return _checked_size(source, read_header(source.path, source.content(), source.frame or 0))


def _checked_size(source: Source, header: Header) -> tuple[int, int]:
    if min(header.height, header.width) < MIN_SIDE:
        raise UserError(
            f"{str(source)!r}: {header.width}x{header.height} pixels are too few; {MIN_SIDE}x{MIN_SIDE} are needed"
        )
    return header.height, header.width


def check_picture(
    picture: str | Path | Source, size: tuple[int, int] | None = None, resize: ResizeMethod = "error"
) -> None:
    """Check that a picture can be read and fits, from its header; only one whose end seems to be missing is decoded.

    Args:
        size: (height, width) that is wanted; None takes any.
        resize: one of ``RESIZE_METHODS``; with ``"error"`` the picture must have that size already.

    Raises:
        UserError: as ``read_size``; the end is missing; the size is another; ``resize`` is none of the methods.
    """
    if resize not in RESIZE_METHODS:
        raise unknown("resize method", resize, RESIZE_METHODS)
    source = source_of(picture)
    content = source.content()
    header = read_header(source.path, content, source.frame or 0)
    height, width = _checked_size(source, header)
    if not header.is_whole:
        _decode(source, content, header, _say_nothing)
    if size is not None and resize == "error" and (height, width) != size:
        upright = " upright" if header.is_turned else ""
        raise UserError(
            f"{str(source)!r} is {width}x{height} (width x height){upright} where {size[1]}x{size[0]} is needed: "
            "bring it to that size, or pass --resize center_crop or --resize resize"
        )


def read_pixels(
    picture: str | Path | Source,
    size: tuple[int, int] | None = None,
    resize: ResizeMethod = "error",
    span: Span | None = None,
    say: Say = LOGGER.log,
) -> np.ndarray:
    """Read a picture as sRGB on white, upright, with all its bits, with ``size`` (height, width) when one is given.

    ``center_crop`` scales the picture until it covers ``size`` and cuts what sticks out; ``resize`` stretches it. Both
    are bicubic with antialiasing. Of a file with several frames the source's is taken, or the first.

    Args:
        span: the values of black and white in a picture with more than 8 bits, where its file does not say.
        say: is told, in words, of what a file holds and is not in its pixels any more: a profile, transparency, frames.

    Returns:
        (H, W, C) with C of 1 (grey) or 3: uint8, or float64 in [-1, 1] where the file has more than 8 bits.

    Raises:
        UserError: as ``check_picture``; the pixels cannot be decoded (a truncated file, say), or have no agreed range.
    """
    source = source_of(picture)
    check_picture(source, size, resize)
    pixels = over_white(_read_straight(source, span, say), lambda level, text: say(level, f"{source}: {text}"))
    return _resized(pixels, size, resize, source)


def read_straight(picture: str | Path | Source, span: Span | None = None, say: Say = LOGGER.log) -> Straight:
    """Read a picture as `read_pixels`, but with its transparent parts beside it, not laid over white."""
    source = source_of(picture)
    check_picture(source)
    return _read_straight(source, span, say)


def _read_straight(source: Source, span: Span | None, say: Say) -> Straight:
    def say_of_it(level: int, text: str) -> None:
        say(level, f"{source}: {text}")

    content = source.content()
    header = read_header(source.path, content, source.frame or 0)
    if header.frames > 1 and source.frame is None:
        say_of_it(logging.INFO, f"the first of its {header.frames} frames is taken (--frames all takes each)")
    decoded = _decode(source, content, header, say_of_it)
    try:
        return decoded if isinstance(decoded, Straight) else to_range(decoded, span, say_of_it)
    except UserError as error:
        raise UserError(f"{str(source)!r}: {error}") from error


def read_picture(
    picture: str | Path | Source, size: tuple[int, int] | None = None, resize: ResizeMethod = "error"
) -> Image.Image:
    """Read a picture as `read_pixels`, as 8-bit RGB: deeper ones are rounded."""
    return to_8_bits(read_pixels(picture, size, resize))


def to_8_bits(pixels: np.ndarray) -> Image.Image:
    """Return what `read_pixels` gives as 8-bit RGB."""
    if pixels.dtype != np.uint8:
        pixels = np.rint((pixels.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).convert("RGB")


def decode_picture(name: str, content: bytes) -> Image.Image:
    """As `read_picture`, whatever the size, from the bytes of a file called ``name`` (a member of an archive, say)."""
    decoded = _decode(source_of(name), content, read_header(name, content), _say_nothing)
    straight = decoded if isinstance(decoded, Straight) else to_range(decoded, None, _say_nothing)
    return to_8_bits(over_white(straight, _say_nothing))


def _say_nothing(level: int, text: str) -> None:
    pass


def _decode(source: Source, content: bytes | None, header: Header, say: Say) -> Straight | DeepPicture:
    """Return a frame's pixels: as sRGB where they have 8 bits."""
    path, frame = source.path if source.member is None else Path(str(source)), source.frame or 0
    if header.reader == "dicom":
        return dicom_files.read_deep(path, content, frame)
    if header.reader == "tiff":
        try:
            return tiff_files.read_deep(path, content, frame)
        except tiff_files.NeedsCodecError as error:
            return _decode_instead(path, content, frame, say, error)
    return _decode_by_pillow(path, content, frame, say)


def _decode_instead(path: Path, content: bytes | None, frame: int, say: Say, why: UserError) -> Straight | DeepPicture:
    """Decode by Pillow what its own reader cannot; where Pillow cannot either, the first reason is the true one."""
    try:
        decoded = _decode_by_pillow(path, content, frame, say)
    except UserError:
        raise why from None
    say(logging.WARNING, f"read by Pillow, which may drop some of its bits ({why})")
    return decoded


def _decode_by_pillow(path: Path, content: bytes | None, frame: int, say: Say) -> Straight | DeepPicture:
    deep = deep_by_pillow.read_deep(path, content, frame, say)
    if deep is not None:
        return deep
    with opened(path, content) as image:
        image.seek(frame)
        return to_srgb(ImageOps.exif_transpose(image), say)


def _resized(pixels: np.ndarray, size: tuple[int, int] | None, resize: ResizeMethod, source: Source) -> np.ndarray:
    """Bring pixels to a size, unless they have it."""
    height, width = pixels.shape[:2]
    if size is None or (height, width) == size:
        return pixels
    if resize == "error":  # an orientation that no header told
        raise UserError(f"{str(source)!r} is {width}x{height} upright where {size[1]}x{size[0]} is needed")

    return fit(pixels, size, resize)


def fit(pixels: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    """Bring pixels (H, W, C) to a size as `read_pixels` says: uint8 as such, others channel by channel as float32."""

    def scaled(image: Image.Image) -> np.ndarray:
        if resize == "center_crop":
            image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
        else:
            image = image.resize(size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(*size, -1)

    if pixels.dtype == np.uint8:
        return scaled(Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]))
    return np.concatenate([scaled(Image.fromarray(c.astype(np.float32))) for c in np.moveaxis(pixels, -1, 0)], -1)
