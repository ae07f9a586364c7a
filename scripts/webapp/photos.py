"""A person's photo, and the hole that was painted into it, as the command takes them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.pictures import read_picture
from ldm_inverse.operators.kernels import given_kernel
from util.errors import UserError

LARGEST_SHOWN = 1024  # pixels a side of what is painted on


def shown(photo: str | Path) -> Image.Image:
    """Return a photo to look at and to paint on.

    Raises:
        UserError: it cannot be read.
    """
    picture = read_picture(photo)
    picture.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
    return picture


def keep(photo: str | Path, folder: Path, side: int | None) -> Path:
    """Copy a photo into a folder as it is, or cut to its middle and scaled to a square of ``side``.

    Raises:
        UserError: it cannot be read.
    """
    source = Path(photo)
    if side is None:
        path = folder / f"photo{source.suffix.lower()}"
        shutil.copyfile(source, path)
        return path
    path = folder / "photo.png"
    read_picture(source, (side, side), "center_crop").save(path)
    return path


def keep_kernel(kernel: str | Path, folder: Path, photo: Path, side: int | None) -> str:
    """Copy a blur's kernel into a folder, and return the copy's name.

    Args:
        photo: the whole one.
        side: of the square that `keep` makes of it, where it does.

    Raises:
        UserError: the photo was scaled, and its blur with it; or the kernel cannot be used.
    """
    if side is not None and read_picture(photo).size != (side, side):
        raise UserError("a kernel needs the photo as it is: untick 'Cut the photo'")
    path = folder / f"kernel{Path(kernel).suffix.lower()}"
    shutil.copyfile(kernel, path)
    given_kernel(path, False, lambda *_: None)
    return path.name


def mask_of(painted: dict[str, Any] | None, photo: Path, is_cut: bool) -> Image.Image | None:
    """Return a mask of a kept photo, black where something was painted; None where nothing was.

    Args:
        painted: what Gradio's editor gives: ``layers`` (RGBA) over a ``background`` of the whole photo.
        photo: as `keep` has left it.
        is_cut: whether that is the photo's middle.
    """
    layers = [np.asarray(layer.convert("RGBA"))[..., 3] > 0 for layer in (painted or {}).get("layers", [])]
    if not layers or not np.any(layers):
        return None
    hole = Image.fromarray((255 * ~np.any(layers, axis=0)).astype(np.uint8))
    size = read_picture(photo).size
    if is_cut:
        return ImageOps.fit(hole, size, Image.Resampling.NEAREST)
    return hole.resize(size, Image.Resampling.NEAREST)
