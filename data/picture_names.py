"""Names for pictures' results. Imports no torch."""

import hashlib
import os
import unicodedata
from collections import Counter
from pathlib import Path

MAX_NAME_BYTES = 200  # of the usual limit of 255, so that endings such as `_s0.safetensors` still fit


def picture_names(paths: list[Path], whole: list[Path] | None = None) -> list[str]:
    """Give each of the relative ``paths`` a name of its own, fit for a file name.

    The name is the stem, after the names of its folders (``a/b.png`` is ``a_b``). Names that clash keep their suffix
    (``b.png`` and ``b.jpg`` are ``b_png`` and ``b_jpg``); should that clash too, or be too long for a file system, a
    hash of the path is added, of that in ``whole`` where given. Control characters, and dots at the start, become
    ``_``: no name is hidden or leads out of its folder. A name never depends on the order of the files.
    """
    names = [_printable("_".join((*path.parent.parts, path.stem))) for path in paths]
    names = [
        f"{name}_{path.suffix[1:]}" if clash else name
        for name, path, clash in zip(names, paths, _clashes(names), strict=True)
    ]
    return [
        _with_hash(name, path) if clash or len(name.encode()) > MAX_NAME_BYTES else name
        for name, path, clash in zip(names, whole or paths, _clashes(names), strict=True)
    ]


def below(path: Path) -> Path:
    """Leave out of a path what leads out of its folder: ``..`` and the root."""
    return Path(*(part for part in path.parts if part not in ("..", path.anchor)))


def _clashes(names: list[str]) -> list[bool]:
    count = Counter(names)
    return [count[name] > 1 for name in names]


def _printable(text: str) -> str:
    """Replace control characters, line separators, undecodable bytes (lone surrogates) and dots that lead the text by
    underscores.
    """
    printable = "".join("_" if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)
    undotted = printable.lstrip(".")
    return "_" * (len(printable) - len(undotted)) + undotted


def _with_hash(name: str, path: Path) -> str:
    digest = hashlib.sha256(os.fsencode(path.as_posix())).hexdigest()[:8]
    return f"{name.encode()[: MAX_NAME_BYTES - 9].decode(errors='ignore')}_{digest}"
