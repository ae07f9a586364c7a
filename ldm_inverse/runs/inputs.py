"""The contents that a restoration was made of: files may be replaced under the same name."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.dataloader import PictureFolder
from data.sources import Source
from ldm_inverse.runs.given_measurements import GivenMeasurements
from util.errors import UserError
from util.files import version_of


class Inputs:
    """Digests of what is read for each image: its picture or measurement, and the operator's files.

    Args:
        pictures: the data set.
        operator: the operator's settings. Those that name a file are of all images; of a folder, the file that is
            called as an image is that one's.
        saved: the folder of an earlier run's measurements, where these are read back.
        more: further files of all images (`Operator.input_files`).
    """

    def __init__(
        self,
        pictures: PictureFolder | GivenMeasurements,
        operator: Mapping[str, Any],
        saved: Path | None = None,
        more: Sequence[Path] = (),
    ) -> None:
        self._pictures, self._saved = pictures, saved
        named = [_file(value) for value in operator.values() if isinstance(value, str)]
        self._common = [_sha256(path) for path in (*named, *more) if os.path.isfile(path)]
        folders = [path for path in named if os.path.isdir(path)]
        # Kernels have been read by now, all of a folder: what is in it later is not what a restoration is made of.
        wanted = {name for name, _ in pictures.pictures} if folders else set()
        self._of_folders = [_digests(folder, wanted) for folder in folders]
        self._known: dict[str, str | None] = {}

    def digest(self, image: str) -> str | None:
        """Return a SHA-256 of an image's inputs; None: they cannot be read.

        They are taken as they are when it is first asked for. Ask before they are read: a file that is replaced between
        the two then differs from the digest, and is noticed.
        """
        if image not in self._known:
            try:
                parts = "".join([*self._common, *self._own(image)])
                self._known[image] = hashlib.sha256(parts.encode()).hexdigest()
            except (OSError, UserError):
                self._known[image] = None
        return self._known[image]

    def _own(self, image: str) -> Iterator[str]:
        source = self._pictures.origin(image).source
        if source is not None:
            yield _sha256(source)
        for digests in self._of_folders:
            yield from digests.get(image, ())
        if self._saved is not None and (self._saved / f"{image}.safetensors").is_file():
            yield _sha256(self._saved / f"{image}.safetensors")


def _file(text: str) -> Path:
    """Return the file that a setting names: FILE, or FILE#NAME where no file is called so."""
    file, mark, _ = text.rpartition("#")
    return Path(file if mark and not os.path.exists(text) else text)


def _digests(folder: Path, wanted: set[str]) -> dict[str, list[str]]:
    """Return the digests of a folder's files, of those that are called as an image that is wanted, by that name."""
    found = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.stem in wanted and path.is_file():
            with suppress(OSError):  # told by whoever reads it for its image
                found[path.stem].append(_sha256(path))
    return found


def _sha256(source: Source | Path) -> str:
    if isinstance(source, Source) and source.frame is not None:
        return _of_many(source.path, source.member, version_of(source.path))
    content = source.content() if isinstance(source, Source) else None
    path = source.path if isinstance(source, Source) else source
    return hashlib.sha256(path.read_bytes() if content is None else content).hexdigest()


@lru_cache(maxsize=16)
def _of_many(path: Path, member: str | None, version: tuple[int, ...]) -> str:
    """Return the digest of a version of a file of many frames: each of them asks for it."""
    return _sha256(Source(path, path, member))
