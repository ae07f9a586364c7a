"""Pictures or measurements by their names, and which of them cannot be used. Imports no torch."""

from collections.abc import Callable
from typing import Any

from data.sources import Origin, Picture, Source
from util.errors import UserError

Fits = Callable[[str, int, int], Any]  # raises a UserError for a name, a height and a width that cannot be used

MAX_NAMED = 10  # unreadable pictures that one error names


class NamedPictures:
    """Pictures, or measurements of such, by their names.

    Args:
        found: all of them.
        limit: take only the first so many; None takes all.
        resize: how each is brought to its image's size, as `read_pixels` has it.

    Attributes:
        names: of all, those beyond the limit too.
        pictures: (name, source) of those within it.
    """

    def __init__(self, found: list[Picture], limit: int | None, resize: str = "error") -> None:
        self.names = [picture.name for picture in found]
        self.pictures, self._by_name, self._resize = found[:limit], dict(found), resize

    def __len__(self) -> int:
        return len(self.pictures)

    def source(self, name: str) -> Source:
        """Return where the one of a name lies."""
        return self._by_name[name]

    def origin(self, name: str) -> Origin:
        """Return where the one of a name lies, and how it is resized."""
        return Origin(name, self._by_name[name], self._resize)

    def stream_name(self, name: str) -> str:
        """Return what its random streams are called, which depends on its own path only."""
        return self._by_name[name].stream_name

    def label(self, name: str) -> int | None:
        """Return its class, where a list gives one."""
        return self._by_name[name].label

    def problems(self, fits: Fits | None = None) -> dict[str, str]:
        """Return what is wrong with each that cannot be used, by name; ``fits`` also decides."""
        problems = {}
        for name, source in self.pictures:
            try:
                self._check_one(name, source, fits)
            except UserError as error:
                problems[name] = str(error)
        return problems

    def check(self, fits: Fits | None = None) -> None:
        """Check each; see `problems`.

        Raises:
            UserError: naming those that cannot be used, one a line; of many, the first.
        """
        lines = list(self.problems(fits).values())
        if len(lines) > MAX_NAMED:
            lines = [*lines[:MAX_NAMED], f"and {len(lines) - MAX_NAMED} more pictures"]
        if lines:
            raise UserError("\n".join(lines))

    def _check_one(self, name: str, source: Source, fits: Fits | None) -> None:
        """Raise a UserError for one that cannot be used."""
        raise NotImplementedError
