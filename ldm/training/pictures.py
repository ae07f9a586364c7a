"""Training pictures: folders and zip files decoded once into a memory-mapped array."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from util.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def _files(sources: Sequence[str | Path]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every picture in the folders and zip files, in sorted order."""
    for source in map(Path, sources):
        if source.is_dir():
            for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES):
                yield str(path), path.read_bytes()
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                for name in sorted(n for n in archive.namelist() if n.lower().endswith(SUFFIXES)):
                    yield f"{source}:{name}", archive.read(name)
        else:
            raise UserError(f"--data: {source} is neither a folder nor a zip file of pictures")


def _decode(name: str, content: bytes, side: int) -> np.ndarray:
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the picture {name}: {error}") from error
    return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS))


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
            for name, content in _files(sources):
                out.write(_decode(name, content, side).tobytes())
                count += 1
        if not count:
            raise UserError(f"--data: no pictures ({', '.join(SUFFIXES)}) in {', '.join(map(str, sources))}")
        stamp.write_text(wanted)
    return np.memmap(cache, dtype=np.uint8, mode="r").reshape(-1, side, side, 3)


def to_model_range(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Crop(NamedTuple):
    """A square of a picture, or of its mirror image."""

    index: int
    top: int
    left: int
    mirrored: bool


def random_crops(
    pictures: np.ndarray, batch_size: int, crop: int, rng: np.random.RandomState, grid: int = 1
) -> list[Crop]:
    """Random pictures, places (multiples of ``grid``) and mirror images."""
    places = (pictures.shape[1] - crop) // grid + 1
    return [
        Crop(rng.randint(len(pictures)), grid * rng.randint(places), grid * rng.randint(places), rng.uniform() < 0.5)
        for _ in range(batch_size)
    ]


def cut(pictures: np.ndarray, crops: Sequence[Crop], side: int) -> Tensor:
    """The squares of uint8 pictures (N, H, W, 3): float32 (B, 3, side, side) in [-1, 1], channels last in memory."""
    batch = np.empty((len(crops), side, side, 3), dtype=np.uint8)
    for row, crop in zip(batch, crops, strict=True):
        picture = pictures[crop.index]
        picture = picture[:, ::-1] if crop.mirrored else picture
        row[:] = picture[crop.top : crop.top + side, crop.left : crop.left + side]
    return to_model_range(batch)
