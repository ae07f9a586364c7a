"""Names in settings files to the classes and functions behind them."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from util.errors import UserError

T = TypeVar("T", bound=Callable[..., Any])


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the entry of ``known`` that looks most like ``word``, or None when none is similar.

    Letter case is ignored in the comparison (``FFHQ`` is near ``ffhq``).
    """
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def unknown(what: str, word: str, known: Iterable[str]) -> UserError:
    """Return (not raise) the error for a word outside ``known``: the nearest match if any, then every known word.

    Args:
        what: what the word should have been, for example ``"operator"`` or ``"keyword of operator 'noise'"``.
    """
    names = sorted(known)
    close = nearest(word, names)
    hint = f"did you mean {close!r}? " if close else ""
    return UserError(f"unknown {what} {word!r}: {hint}known: {', '.join(names) or '(none)'}")


class Registry:
    """A table from names to factories (classes or functions) of one kind of thing.

    Args:
        kind: what the entries are, in the singular (``"operator"``); error messages use it.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files a factory under ``name`` and hands it back unchanged.

        Raises:
            ValueError: ``name`` is taken.
        """

        def decorate(factory: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is already registered, as {self._entries[name]!r}")
            self._entries[name] = factory
            return factory

        return decorate

    def get(self, name: str) -> Callable[..., Any]:
        """Return the factory filed under ``name``.

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

    def build(self, name: str, **kwargs: Any) -> Any:
        """Call the factory filed under ``name`` with ``kwargs``.

        Raises:
            UserError: no such name, a keyword the factory does not take (the nearest it takes is offered), or a
                required one left out. Exceptions from the factory's own body pass through unchanged.
        """
        factory = self.get(name)
        self._check_keywords(name, factory, kwargs)
        return factory(**kwargs)

    def _check_keywords(self, name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        """Compare ``kwargs`` with the factory's signature, so that a TypeError from its body is never mistaken."""
        parameters = inspect.signature(factory).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            accepted = {p.name for p in named}
            for keyword in kwargs:
                if keyword not in accepted:
                    raise unknown(f"keyword of {self.kind} {name!r}", keyword, accepted)
        missing = [p.name for p in named if p.default is p.empty and p.name not in kwargs]
        if missing:
            raise UserError(f"{self.kind} {name!r} needs {', '.join(missing)}")
