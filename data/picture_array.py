"""A set of pictures as one array: folders and zip files decoded once into a memory-mapped file. Imports no torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.picture_files import SUFFIXES
from data.pictures import read_picture
from data.sources import find_pictures
from util.errors import UserError


def _decoded(sources: Sequence[str | Path]) -> Iterator[Image.Image]:
    """Every picture in the folders and zip files as RGB, each source's in sorted order."""
    for root in map(Path, sources):
        if not (root.is_dir() or root.suffix.lower() == ".zip"):
            raise UserError(f"--data: {root} is neither a folder nor a zip file of pictures")
        for _, source in find_pictures(root):
            yield read_picture(source)


def load_pictures(sources: Sequence[str | Path], side: int, cache: Path) -> np.ndarray:
    """Every picture below the sources, centre-cropped and scaled to ``side``: uint8 of shape (N, side, side, 3).

    The array lies in the file ``cache``, written at the first call and mapped into memory, so that sets larger than the
    memory can be used; a cache of other sources is written anew.

    Raises:
        UserError: a source that is no folder and no zip file, a picture that cannot be read, or no picture at all.
    """
    stamp = cache.with_suffix(".txt")
    wanted = "\n".join(
        [str(side), *(f"{Path(s).resolve()} {Path(s).stat().st_mtime_ns}" for s in sources if Path(s).exists())]
    )
    if not (cache.exists() and stamp.exists() and stamp.read_text() == wanted):
        stamp.unlink(missing_ok=True)
        count = 0
        with cache.open("wb") as out:
            for picture in _decoded(sources):
                out.write(np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)).tobytes())
                count += 1
        if not count:
            raise UserError(f"--data: no pictures ({', '.join(SUFFIXES)}) in {', '.join(map(str, sources))}")
        stamp.write_text(wanted)
    return np.memmap(cache, dtype=np.uint8, mode="r").reshape(-1, side, side, 3)
