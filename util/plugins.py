"""Files of a person's own code (`--plugin`): loaded by explicit request, and blamed for their own exceptions."""

import hashlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from util.errors import UserError

_loaded: dict[str, str] = {}  # the SHA-256, by the name that tracebacks give their code: the path


def load_plugins(paths: Sequence[str | Path], expected: Mapping[str, str] | None = None) -> list[str]:
    """Run files that register operators, noises, datasets, conditioning methods or samplers; each once in a process.

    Args:
        paths: the files, in order.
        expected: SHA-256 that files must have, by path; a path that is not in it may have any.

    Returns:
        Each file's SHA-256, in hexadecimal: that of the very bytes that were run.

    Raises:
        UserError: a file is not there, has another SHA-256, or its code fails; the line of the file is told.
    """
    return [_load(str(path), (expected or {}).get(str(path))) for path in paths]


def _load(path: str, expected: str | None) -> str:
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"--plugin {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if expected not in (None, digest):
        raise UserError(
            f"--plugin {path} has changed since the run that is to be repeated: its SHA-256 is {digest}, not {expected}"
        )
    if _loaded.get(path) != digest:
        _run(path, content, digest)
    return digest


def _run(path: str, content: bytes, digest: str) -> None:
    module = ModuleType(f"plugin_{Path(path).stem}_{digest[:8]}")
    module.__file__ = path
    before, _loaded[path] = _loaded.get(path), digest
    sys.modules[module.__name__] = module  # dataclasses and pickles look their module up
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.filename == path else ""
        told = complaint(error) or f"--plugin {path}{line}: {_as_line(error)}"
        del sys.modules[module.__name__], _loaded[path]
        if before is not None:
            _loaded[path] = before
        raise UserError(told) from error


def complaint(error: BaseException) -> str | None:
    """Return a line that names the plugin, and its line, that an exception came through; None where it did not."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _loaded:
            return f"--plugin {frame.filename}, line {frame.lineno}, in {frame.name}: {_as_line(error)}"
    return None


def _as_line(error: BaseException) -> str:
    """Return an exception's kind and message in one line."""
    return " ".join(traceback.format_exception_only(error)[-1].split())[:500]
