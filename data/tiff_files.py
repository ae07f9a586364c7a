"""TIFF files with more than 8 bits a value, read by tifffile (Pillow cuts colours to 8 bits). Imports no torch."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from data.deep_pictures import UPRIGHT, DeepPicture, span_of
from data.picture_files import stream, too_many_pixels
from util.errors import UserError

if TYPE_CHECKING:
    from tifffile import TiffPage

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretations
PHOTOMETRIC, ORIENTATION, MAX_SAMPLE_VALUE, ICC_PROFILE = 262, 274, 281, 34675  # tags
PREMULTIPLIED, STRAIGHT = ALPHA = 1, 2  # kinds of extra samples that are alpha


class NeedsCodecError(UserError):
    """A compression that tifffile decodes with a further package only."""


class TiffHeader(NamedTuple):
    """Height and width as stored, orientation, the number of pages, and whether all of this one is there."""

    height: int
    width: int
    orientation: int
    frames: int
    is_whole: bool


def read_header(path: str | Path, content: bytes | None, frame: int) -> TiffHeader:
    """Read what a page says of itself.

    Raises:
        UserError: the file is damaged, has no such page, or declares more pixels than Pillow deems safe.
    """
    with _page(path, content, frame) as (page, frames):
        size = Path(path).stat().st_size if content is None else len(content)
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        turned = int(page.tags.valueof(ORIENTATION, 1))
        return TiffHeader(page.imagelength, page.imagewidth, turned, frames, max(ends, default=size + 1) <= size)


def read_deep(path: str | Path, content: bytes | None, frame: int) -> DeepPicture:
    """Read a page of grey or RGB.

    Raises:
        NeedsCodecError: its compression takes a further package.
        UserError: as `read_header`, or it holds colours of another kind, or no colours.
    """
    with _page(path, content, frame) as (page, _):
        if page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
            kind = getattr(page.photometric, "name", page.photometric)
            raise UserError(f"{str(path)!r}: this TIFF is {kind}, which is not read: save it as grey or RGB")
        values = page.asarray()
        if "S" not in page.axes:
            values = values[..., None]
        values = np.moveaxis(values, page.axes.index("S") if "S" in page.axes else -1, -1)
        values = UPRIGHT.get(int(page.tags.valueof(ORIENTATION, 1)), UPRIGHT[1])(values)
        samples = values.shape[-1]
        colours = _colours(page, samples)
        alpha = _alpha_place(page, samples, colours)
        read = colours + (alpha is not None)
        scale = span_of(values.dtype)
        span = _span(page, scale)
        return DeepPicture(
            values[..., :colours],
            span[::-1] if span and page.photometric == WHITE_IS_ZERO else span,
            None if alpha is None else values[..., alpha] / (scale[1] if scale else 1.0),
            alpha is not None and page.extrasamples[alpha - samples] == PREMULTIPLIED,
            page.tags.valueof(ICC_PROFILE, None),
            bits_are_told=span != scale,
            remark=f"only {read} of the {samples} values of each pixel are read" if read < samples else "",
        )


def _colours(page: "TiffPage", samples: int) -> int:
    """Return how many of a pixel's values are its colours: three also where nothing is said of a second and third, as
    by programs that know arrays, and not colours.
    """
    unsaid = samples in (3, 4) and not any(page.extrasamples[:2])
    return 3 if page.photometric == RGB or unsaid else 1


def _alpha_place(page: "TiffPage", samples: int, colours: int) -> int | None:
    """Return which of a pixel's values is alpha; None where none is."""
    first = samples - len(page.extrasamples)
    kinds = dict(enumerate(page.extrasamples, first))
    return next((place for place, kind in kinds.items() if place >= colours and kind in ALPHA), None)


def _span(page: "TiffPage", scale: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return what is black and white: by the number of bits, or the largest value that the file declares."""
    if scale is None or page.dtype is None:
        return None
    if page.bitspersample < 8 * page.dtype.itemsize:  # 10 or 12 bits, packed
        return 0.0, float(2**page.bitspersample - 1)
    declared = page.tags.valueof(MAX_SAMPLE_VALUE, None)
    largest = max(declared) if isinstance(declared, tuple) else declared
    is_odd = largest is None or not 255 < largest < scale[1] or page.asarray().max() > largest
    return scale if is_odd else (0.0, float(largest))


@contextmanager
def _page(path: str | Path, content: bytes | None, frame: int) -> Iterator[tuple["TiffPage", int]]:
    """Open a page, and tell how many there are."""
    from tifffile import TiffFile  # slow to import, and seldom needed

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised as well
    try:
        with stream(path, content) as file, TiffFile(file) as tiff:
            page = tiff.pages[frame]
            if Image.MAX_IMAGE_PIXELS and page.imagelength * page.imagewidth > Image.MAX_IMAGE_PIXELS:
                raise UserError(too_many_pixels(repr(str(path))))
            if min(page.imagelength, page.imagewidth) < 1:
                raise ValueError(f"its sides are {page.imagelength} and {page.imagewidth}")
            if page.dtype is None:
                raise ValueError(f"{page.bitspersample} bits a value")
            if len(page.dataoffsets) < math.prod(page.chunked):
                raise ValueError(f"{len(page.dataoffsets)} of its {math.prod(page.chunked)} strips or tiles are there")
            yield page, len(tiff.pages)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever damaged bytes lead to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "imagecodecs" in reason or isinstance(error, ImportError):  # or a decoder of newer Pythons
            raise NeedsCodecError(
                f"{str(path)!r}: its compression needs imagecodecs: pip install imagecodecs"
            ) from error
        raise UserError(f"{str(path)!r}: cannot read this TIFF: {reason}") from error
