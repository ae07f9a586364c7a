"""The contents that a restoration was made of: files may be replaced under the same name."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.dataloader import PictureFolder
from data.sources import Source
from ldm_inverse.runs.given_measurements import GivenMeasurements
from util.errors import UserError


class Inputs:
    """Digests of what is read for each image: its picture or measurement, and the operator's files.

    Args:
        pictures: the data set.
        operator: the operator's settings. Those that name a file are of all images; of a folder, the file that is
            called as an image is that one's.
        saved: the folder of an earlier run's measurements, where these are read back.
    """

    def __init__(
        self, pictures: PictureFolder | GivenMeasurements, operator: Mapping[str, Any], saved: Path | None = None
    ) -> None:
        self._pictures, self._saved = pictures, saved
        named = [str(value).partition("#")[0] for value in operator.values() if isinstance(value, str)]
        self._folders = [Path(name) for name in named if Path(name).is_dir()]
        self._common = [_sha256(Path(name)) for name in named if Path(name).is_file()]
        self._known: dict[str, str | None] = {}

    def digest(self, image: str) -> str | None:
        """Return a SHA-256 of an image's inputs as they are when it is first asked for; None: they cannot be read."""
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
        for folder in self._folders:
            yield from (_sha256(path) for path in sorted(folder.iterdir()) if path.stem == image)
        if self._saved is not None and (self._saved / f"{image}.safetensors").is_file():
            yield _sha256(self._saved / f"{image}.safetensors")


def _sha256(source: Source | Path) -> str:
    content = source.content() if isinstance(source, Source) else None
    path = source.path if isinstance(source, Source) else source
    return hashlib.sha256(path.read_bytes() if content is None else content).hexdigest()
