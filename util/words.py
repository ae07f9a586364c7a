"""Words that a person typed, and the known ones they may have meant."""

import difflib
from collections.abc import Iterable

from util.errors import UserError


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
        what: what the word should have been, for example ``"operator"`` or ``"setting of conditioning.resample"``.
    """
    names = sorted(known)
    close = nearest(word, names)
    hint = f"did you mean {close!r}? " if close else ""
    return UserError(f"unknown {what} {str(word)[:100]!r}: {hint}known: {', '.join(names) or '(none)'}")
