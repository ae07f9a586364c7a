"""Opening picture files that may be anything. Imports no torch."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from util.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # what is opened, whatever a file's suffix says


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open a picture, turning whatever its bytes make Pillow raise, inside the ``with`` block too, into UserError.

    With ``content``, those are its bytes, and ``path`` is only what errors call it.
    """
    shown = repr(str(path))
    if content is None and not os.path.isfile(path):
        raise UserError(f"{shown}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd metadata; what matters is raised as well
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
                yield image
    except (UserError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS
        raise UserError(f"{shown}: declares more than {limit} pixels; scale it down first") from None
    except UnidentifiedImageError:
        size = os.path.getsize(path) if content is None else len(content)
        what = "not a picture of a known format" if size else "an empty file"
        raise UserError(f"{shown}: {what} ({', '.join(FORMATS)} can be read)") from None
    except Exception as error:  # a decoder that meets damaged bytes may raise anything
        raise UserError(f"{shown}: cannot read this picture: {error or type(error).__name__}") from error
