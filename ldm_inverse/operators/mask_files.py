"""Masks that a person gives."""

import logging
import os
from pathlib import Path

import numpy as np

from data.array_choice import files_by_name
from data.mask_values import read_alpha, read_mask_values
from data.pictures import fit, read_size
from data.sources import Origin
from util.errors import UserError
from util.logging import SayOnce

ALPHA = "alpha"  # in place of a file: the alpha channel of each picture itself
BLURRED = 0.2  # the share of pixels between black and white that smooth edges and JPEG may make
NEARLY = 0.1  # of black or white


class GivenMasks:
    """Masks from files: 1 keeps a pixel, 0 drops it.

    A file is a picture or an array (`read_mask_values`); its pixels are kept from half of its largest value on. A mask
    with the size of the picture before ``--resize`` is resized with it.

    Args:
        path: a file for all images; a folder with one for each, named like the image's results: the mask of
            `recon/a_b.png` is `a_b.png`, `a_b.npy` or so; or "alpha", the alpha channel of each picture itself.
        keeps: which pixels are kept: 1 those from the threshold on (white, opaque), 0 the others (black, transparent).
        threshold: a share of the largest value, above 0; None is a half, and refuses a file that does not look like a
            mask.
        dilate: by how many pixels of the image the dropped parts grow on every side.

    Raises:
        UserError: there is no such file or folder, the file is no mask, or two files of the folder have one name.
    """

    def __init__(self, path: str, keeps: int = 1, threshold: float | None = None, dilate: int = 0) -> None:
        self.path, self.keeps, self.threshold, self.dilate = path, keeps, threshold, dilate
        self.is_common = path != ALPHA and not os.path.isdir(path)
        self._say = SayOnce()
        self._files = files_by_name(Path(path), "mask_file") if os.path.isdir(path) else {}
        self._common = self._read(path) if self.is_common else None
        if self._common is not None:
            self._final(*self._common, path)

    def mask(self, height: int, width: int, origin: Origin | None = None) -> np.ndarray:
        """Return the mask (height, width), float32, of the image that was read from a picture.

        Raises:
            UserError: there is none of this size, or, without a picture, only one for each.
        """
        values, high, where = self._of(origin)
        if values.shape != (height, width):
            if origin is None or not _follows(origin, values.shape[0], values.shape[1]):
                raise UserError(
                    f"mask_file {where} is {values.shape[0]} x {values.shape[1]} and the image {height} x {width}: "
                    "a mask has the size of the image, or of the picture before --resize center_crop|resize"
                )
            values = fit(values[..., None], (height, width), origin.resize)[..., 0]
        return self._final(values, high, where)

    def _of(self, origin: Origin | None) -> tuple[np.ndarray, str, str]:
        """Return the values of a picture's mask from 0 to 1, how the largest are called, and where they come from."""
        if self._common is not None:
            return *self._common, self.path
        if origin is None or (self.path == ALPHA and origin.source is None):
            raise UserError(f"mask_file {self.path}: each picture has a mask of its own, and this one has no name")
        if self.path != ALPHA:
            file = self._file(origin.name)
            return *self._read(file), file
        alpha = read_alpha(origin.source) if origin.source is not None else None
        if alpha is None:
            raise UserError(f"mask_file alpha: {origin.source} has no transparency")
        return alpha / 255, "opaque (not transparent)", str(origin.source)

    def _file(self, name: str) -> str:
        if name in self._files:
            return str(self._files[name])
        raise UserError(f"mask_file {self.path}: no mask for {name!r} in this folder: looked for {name}.png, .npy, ...")

    def _read(self, path: str) -> tuple[np.ndarray, str]:
        """Return a file's values as shares of the largest, and how that is called."""
        try:
            values, high = read_mask_values(path)
        except UserError as error:
            raise UserError(f"mask_file {error}") from error
        shares = values / max(values.max(), 1e-300)
        between = float(((shares > NEARLY) & (shares < 1 - NEARLY)).mean())
        if self.threshold is None and between > BLURRED:
            raise UserError(
                f"mask_file {path} has {len(np.unique(values))} different values, {100 * between:.0f} % of its pixels "
                "lie between black and white: is it a mask? mask_threshold: 0.5 keeps what is above half"
            )
        return shares, high

    def _final(self, shares: np.ndarray, high: str, where: str) -> np.ndarray:
        """Return the mask of shares of the largest value, and say what it keeps."""
        mask = (shares >= (self.threshold or 0.5)) == (self.keeps == 1)
        if self.dilate:
            from scipy.ndimage import binary_dilation  # slow to import

            mask = ~binary_dilation(~mask, np.ones((3, 3)), iterations=self.dilate)
        low = {"white (not zero)": "black (zero)"}.get(high, "transparent")
        which, other = (high, low) if self.keeps else (low, high)
        if not mask.any():
            raise UserError(
                f"mask_file {where}: no pixel is {which}, so none is kept; mask_keeps={1 - self.keeps} keeps what is "
                f"{other}"
            )
        size = f"{mask.shape[0]} x {mask.shape[1]}"
        level = logging.WARNING if mask.all() else logging.INFO
        self._say(level, f"mask {where}: what is {which} is kept: {100 * mask.mean():.1f} % of {size} pixels")
        return mask.astype(np.float32)


def _follows(origin: Origin, height: int, width: int) -> bool:
    """Tell whether a mask of this size can be brought to the image's as the picture is: both have the same shape."""
    if origin.resize not in ("center_crop", "resize") or origin.source is None:
        return False
    tall, wide = read_size(origin.source)
    return abs(height * wide - width * tall) <= max(tall, wide)
