"""Datasets of pictures behind a registry, and their loader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data.named_pictures import Fits, NamedPictures
from data.pictures import ResizeMethod, check_picture, read_pixels, read_size, to_8_bits
from data.sources import Frames, Source, find_pictures
from util.errors import UserError
from util.registry import Registry
from util.settings import Count, Span

DATASETS = Registry("dataset")
register_dataset = DATASETS.register


class Item(NamedTuple):
    """One picture.

    Attributes:
        name: under which its results are written.
        path: its file, or the archive that holds it.
        image: a float32 tensor (C, H, W) in [-1, 1], or what the dataset's ``transforms`` gave.
        label: its class, where a list gives one.
    """

    name: str
    path: Path
    image: Any
    label: int | None = None


class Batch(NamedTuple):
    """Pictures of one size: ``images`` is (B, C, H, W) in [-1, 1]."""

    names: list[str]
    paths: list[Path]
    images: torch.Tensor


def get_dataset(
    name: str, root: str | Path, transforms: Callable[[Image.Image], Any] | None = None, **kwargs: Any
) -> Dataset:
    """Build the dataset registered under ``name`` over the pictures in ``root``.

    Args:
        transforms: takes an RGB PIL picture and returns what ``Item.image`` holds; None gives a tensor in [-1, 1].
        kwargs: further keywords of that dataset, such as ``size``, ``resize`` and ``limit`` of `PictureFolder`.

    Raises:
        UserError: an unknown name or keyword, or whatever is wrong with ``root``.
    """
    return DATASETS.build(name, root=root, transforms=transforms, **kwargs)


def get_dataloader(dataset: Dataset, batch_size: int, num_workers: int, train: bool) -> DataLoader:
    """Return a loader of `Batch`; for training it shuffles and drops the last, incomplete batch.

    The pictures of a batch must have one size (give the dataset a ``size``), and be tensors.
    """
    return DataLoader(dataset, batch_size, shuffle=train, num_workers=num_workers, drop_last=train, collate_fn=_collate)


def to_tensor(picture: Image.Image | np.ndarray, channels: int = 3) -> torch.Tensor:
    """Return an 8-bit picture, or what `read_pixels` gives, as a float32 tensor (channels, H, W) in [-1, 1].

    Grey is repeated for three channels. For one, colours become grey by the weights of ITU-R BT.601, as in Pillow.
    """
    array = np.array(picture)  # a copy, which may be written to
    pixels = torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1).contiguous()
    # The published two steps, ToTensor and Normalize(0.5, 0.5), for equal rounding.
    image = pixels.float().div(255).sub(0.5).div(0.5) if array.dtype == np.uint8 else pixels.float()
    if image.shape[0] == channels:
        return image
    if channels == 1:
        return torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), image, 1)[None]
    return image.expand(channels, -1, -1).contiguous()


@register_dataset(name="ffhq")
@register_dataset(name="celeb")
class PictureFolder(NamedPictures, Dataset):
    """Every picture below a folder (or a single picture, those of a list or of a zip archive), one `Item` each.

    Args:
        root: as `find_pictures`.
        transforms: takes an RGB PIL picture and returns what ``Item.image`` holds; None gives a tensor in [-1, 1].
        size: height and width of every picture, or one number for both; None takes pictures of any size.
        resize: what to do with a picture of another size: ``error``, ``center_crop`` or ``resize``.
        limit: take only the first so many pictures. Names are given before, so they do not depend on it.
        frames: of files that have several, ``first`` or ``all``.
        data_root: the folder that the paths in a list begin in; None is the list's own.
        channels: of the tensors, 1 or 3 (`to_tensor`).
        range: the values of black and white in pictures with more than 8 bits whose files do not say.

    Attributes:
        names: of all pictures, those beyond the limit too.
        pictures: (name, source) of those within it.

    Raises:
        UserError: as `find_pictures`; indexing and `check` raise it for a picture that is unreadable or does not fit.
    """

    def __init__(
        self,
        root: str | Path,
        transforms: Callable[[Image.Image], Any] | None = None,
        size: Count | tuple[Count, Count] | None = None,
        resize: ResizeMethod = "error",
        limit: Count | None = None,
        frames: Frames = "first",
        data_root: str | Path | None = None,
        channels: Literal[1, 3] = 3,
        range: Span | None = None,
    ) -> None:
        found = find_pictures(root, frames=frames, data_root=data_root)
        super().__init__(found, limit, resize)
        self._positions = {name: position for position, (name, _) in enumerate(self.pictures)}
        self.transforms = transforms
        self.size = (size, size) if isinstance(size, int) else size
        self.resize = resize
        self.channels = channels
        self.range = range

    def __getitem__(self, index: int) -> Item:
        return self._item(*self.pictures[index])

    def _item(self, name: str, source: Source) -> Item:
        pixels = read_pixels(source, self.size, self.resize, self.range)
        image = to_tensor(pixels, self.channels) if self.transforms is None else self.transforms(to_8_bits(pixels))
        return Item(name, source.path, image, source.label)

    def picture(self, name: str) -> Item:
        """Return the picture of a name, of those within the limit.

        Raises:
            UserError: it is unreadable or does not fit.
        """
        return self[self._positions[name]]  # by position, which data sets of one's own define

    def size_of(self, name: str) -> tuple[int, int]:
        """Return the (height, width) of what `picture` gives for a name, from the header.

        Raises:
            UserError: it is unreadable.
        """
        return self.size or read_size(self._by_name[name])

    def _check_one(self, name: str, source: Source, fits: Fits | None) -> None:
        """By its header: nothing is decoded."""
        check_picture(source, self.size, self.resize)
        if fits is not None:
            size = self.size or read_size(source)
            try:
                fits(name, *size)
            except UserError as error:
                raise UserError(f"{str(source)!r}: {error}") from error


def _collate(items: list[Item]) -> Batch:
    names, paths, images, _ = zip(*items, strict=True)
    return Batch(list(names), list(paths), torch.stack(images))
