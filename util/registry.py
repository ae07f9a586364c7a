"""Names in settings files to the classes and functions behind them."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from util.settings import keywords as checked_keywords
from util.words import unknown

T = TypeVar("T")


class Registry:
    """A table from names to entries of one kind of thing: factories (classes or functions), which `build` calls, or
    whatever else the name stands for.

    Args:
        kind: what the entries are, in the singular (``"operator"``); error messages use it.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files an entry under ``name`` and hands it back unchanged.

        Raises:
            ValueError: ``name`` is taken.
        """

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is already registered, as {self._entries[name]!r}")
            self._entries[name] = entry
            return entry

        return decorate

    def get(self, name: str) -> Any:
        """Return the entry filed under ``name``.

        Raises:
            UserError: no such name; the message offers the nearest one and lists all.
        """
        try:
            return self._entries[name]
        except (KeyError, TypeError):  # TypeError: an unhashable value where a YAML should have a name
            raise unknown(self.kind, name, self._entries) from None

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        return sorted(self._entries)

    def build(self, name: str, **keywords: Any) -> Any:
        """Call the factory filed under ``name`` with its keywords, which are checked by its annotations.

        Raises:
            UserError: no such name, a keyword the factory does not take (the nearest it takes is offered), a required
                one left out, or a value of the wrong type or range. Exceptions from the factory's own body pass
                through unchanged.
        """
        return self.make(name, keywords, f"{self.kind} {name!r}")

    def make(self, name: str, keywords: Mapping[str, Any], where: str) -> Any:
        """As `build`, for keywords that are the settings at the dotted path ``where``."""
        factory = self.get(name)
        return factory(**checked_keywords(factory, keywords, where))
