"""Datasets of pictures behind a registry, and their loader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data.pictures import check_picture, find_pictures, name_alone, read_picture, read_size
from util.errors import UserError
from util.registry import Registry

DATASETS = Registry("dataset")
register_dataset = DATASETS.register

MAX_NAMED = 10  # unreadable pictures that one error names


class Item(NamedTuple):
    """One picture: ``image`` is a float32 tensor (3, H, W) in [-1, 1], or what the dataset's ``transforms`` gave."""

    name: str
    path: Path
    image: Any


class Batch(NamedTuple):
    """Pictures of one size: ``images`` is (B, 3, H, W) in [-1, 1]."""

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


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """Return an 8-bit RGB picture as a float32 tensor (3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    # The published two steps, ToTensor and Normalize(0.5, 0.5), for equal rounding.
    return pixels.float().div(255).sub(0.5).div(0.5)


@register_dataset(name="ffhq")
@register_dataset(name="celeb")
class PictureFolder(Dataset):
    """Every picture below a folder (or a single picture), sorted, one `Item` each.

    Args:
        root: a folder, searched with its subfolders, or a picture.
        transforms: takes an RGB PIL picture and returns what ``Item.image`` holds; None gives a tensor in [-1, 1].
        size: height and width of every picture, or one number for both; None takes pictures of any size.
        resize: what to do with a picture of another size: ``error``, ``center_crop`` or ``resize``.
        limit: take only the first so many pictures. Names are given before, so they do not depend on it.

    Attributes:
        names: of all pictures, those beyond the limit too.
        pictures: (name, path) of those within it.

    Raises:
        UserError: as `find_pictures`; indexing and `check` raise it for a picture that is unreadable or does not fit.
    """

    def __init__(
        self,
        root: str | Path,
        transforms: Callable[[Image.Image], Any] | None = None,
        size: int | tuple[int, int] | None = None,
        resize: str = "error",
        limit: int | None = None,
    ) -> None:
        self.root = root
        found = find_pictures(root)
        self.names = [name for name, _ in found]
        self.pictures = found[:limit]
        self.transforms = transforms or to_tensor
        self.size = (size, size) if isinstance(size, int) else size and tuple(size)
        self.resize = resize

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Item:
        name, path = self.pictures[index]
        return Item(name, path, self.transforms(read_picture(path, self.size, self.resize)))

    def picture(self, name: str) -> Item:
        """Return the picture of a name.

        Raises:
            UserError: it is unreadable or does not fit.
        """
        return self[self.names.index(name)]

    def stream_name(self, name: str) -> str:
        """Return what the random streams of a picture are called, which depends on its own path only (`name_alone`)."""
        return name_alone(self.pictures[self.names.index(name)].path, self.root)

    def size_of(self, name: str) -> tuple[int, int]:
        """Return the (height, width) of what `picture` gives for a name, from the header.

        Raises:
            UserError: it is unreadable.
        """
        return self.size or read_size(self.pictures[self.names.index(name)].path)

    def problems(self, fits: Callable[[str, int, int], Any] | None = None) -> dict[str, str]:
        """Return what is wrong with each picture that cannot be used, by name, from the headers; nothing is decoded.

        Args:
            fits: raises a UserError for a name, a height and a width that cannot be used.
        """
        problems = {}
        for name, path in self.pictures:
            try:
                check_picture(path, self.size, self.resize)
                if fits is not None:
                    self._check_fit(name, path, fits)
            except UserError as error:
                problems[name] = str(error)
        return problems

    def check(self, fits: Callable[[str, int, int], Any] | None = None) -> None:
        """Check every picture's header; see `problems`.

        Raises:
            UserError: naming the pictures that cannot be used, one a line.
        """
        refuse(list(self.problems(fits).values()))

    def _check_fit(self, name: str, path: Path, fits: Callable[[str, int, int], Any]) -> None:
        try:
            fits(name, *(self.size or read_size(path)))
        except UserError as error:
            raise UserError(f"{str(path)!r}: {error}") from error


def refuse(problems: list[str]) -> None:
    """Raise a UserError of these lines, where there are any; of many, the first.

    Raises:
        UserError: there is a problem.
    """
    if len(problems) > MAX_NAMED:
        problems = [*problems[:MAX_NAMED], f"and {len(problems) - MAX_NAMED} more pictures"]
    if problems:
        raise UserError("\n".join(problems))


def _collate(items: list[Item]) -> Batch:
    names, paths, images = zip(*items, strict=True)
    return Batch(list(names), list(paths), torch.stack(images))
