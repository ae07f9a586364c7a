"""A set of pictures as one array: folders and zip files decoded once into a memory-mapped file. Imports no torch."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.pictures import SUFFIXES, decode_picture, find_pictures
from util.errors import UserError


def _decoded(sources: Sequence[str | Path]) -> Iterator[Image.Image]:
    """Every picture in the folders and zip files as RGB, each source's in sorted order."""
    for source in map(Path, sources):
        if source.is_dir():
            for _, path in find_pictures(source):
                yield decode_picture(str(path), path.read_bytes())
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                for name in sorted(n for n in archive.namelist() if n.lower().endswith(SUFFIXES)):
                    yield decode_picture(f"{source}:{name}", _member(archive, name))
        else:
            raise UserError(f"--data: {source} is neither a folder nor a zip file of pictures")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"--data: cannot read {name!r} in {archive.filename}: {error}") from error


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
