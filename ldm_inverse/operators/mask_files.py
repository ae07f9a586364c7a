"""Masks that a person gives as files."""

import logging
from pathlib import Path

import numpy as np

from util.array_files import ARRAY_SUFFIXES, read_numbers
from util.errors import UserError
from util.picture_files import SUFFIXES

logger = logging.getLogger("resample")


class GivenMasks:
    """Masks from files: 1 keeps a pixel, 0 drops it.

    A file is a picture, a .npy array, or a .safetensors file of one array, (H, W), (1, H, W) or (H, W, 1), with two
    values: zero (black) and one other (white).

    Args:
        path: a file for all images, or a folder that has one for each, called as the image's results are: the mask of
            `recon/a_b.png` is `a_b.png`, `a_b.npy` or so.
        keeps: which pixels are kept: 1 those that are not zero (white), 0 those that are zero (black).

    Raises:
        UserError: there is no such file or folder, or the file is no mask; a value of ``keeps`` that is neither.
    """

    def __init__(self, path: str, keeps: int = 1) -> None:
        if isinstance(keeps, bool) or keeps not in (0, 1):
            raise UserError(f"mask_keeps: expected 1 (what is not zero, white) or 0 (zero, black), got {keeps!r}")
        if not isinstance(path, str):
            raise UserError(f"mask_file: expected the path of a file or folder, got {path!r}")
        self.path, self.keeps = Path(path), keeps
        self.is_folder = self.path.is_dir()
        self._common = None if self.is_folder else self._read(self.path)

    def check_size(self, height: int, width: int) -> None:
        """Check that an image of this size can have a mask, as far as that is known without its name.

        Raises:
            UserError: the mask for all has another size.
        """
        if not self.is_folder:
            self.mask(height, width)

    def draw(self, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
        """Return the mask for all images, as `mask_generator.draw`; nothing is random in it."""
        return self.mask(height, width)

    def mask(self, height: int, width: int, name: str | None = None) -> np.ndarray:
        """Return the mask (height, width), float32, of the image of a name.

        Raises:
            UserError: there is none of this size, or, without a name, only one for each image.
        """
        mask = self._read(self._file(name)) if self._common is None else self._common
        if mask.shape != (height, width):
            where = self._file(name) if self._common is None else self.path
            raise UserError(
                f"mask_file {where} is {mask.shape[0]} x {mask.shape[1]} and the image {height} x {width}: "
                "a mask has the image's size"
            )
        return mask

    def _file(self, name: str | None) -> Path:
        if name is None:
            raise UserError(f"mask_file {self.path}: a folder has masks for images of its files' names alone")
        for suffix in (*SUFFIXES, *ARRAY_SUFFIXES):
            path = self.path / f"{name}{suffix}"
            if path.is_file():
                return path
        raise UserError(f"mask_file {self.path}: no mask for {name!r} in this folder: looked for {name}.png, .npy, ...")

    def _read(self, path: Path) -> np.ndarray:
        try:
            values = read_numbers(path)
        except UserError as error:
            raise UserError(f"mask_file {error}") from error
        shape = values.shape
        if len(shape) == 3 and 1 in (shape[0], shape[-1]):
            values = values[0] if shape[0] == 1 else values[..., 0]
        if values.ndim != 2 or not values.size:
            raise UserError(f"mask_file {path}: expected an array (H, W), got one of shape {shape}")
        high = values.max()
        if high < 0 or not np.isin(values, (0, high)).all():
            count = len(np.unique(values))
            raise UserError(
                f"mask_file {path} has {count} different values: a mask has two, zero (black) and one other (white); "
                "JPEG and smooth edges make more"
            )
        mask = ((values != 0) == (self.keeps == 1)).astype(np.float32)
        which = "white (not zero)" if self.keeps else "black (zero)"
        level = logging.DEBUG if self.is_folder else logging.INFO
        logger.log(level, "mask %s: %s keeps: %.1f %% of %d x %d pixels", path, which, 100 * mask.mean(), *mask.shape)
        if not mask.any():
            raise UserError(f"mask_file {path}: no pixel is {which}, and that keeps: mask_keeps={1 - self.keeps}?")
        return mask
