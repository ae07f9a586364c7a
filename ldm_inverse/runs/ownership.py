"""Whether a run may have a folder: whether it can be written, and whose results are there."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_inverse.runs.manifest import FORMAT, differences, read_record
from util.errors import UserError

SETTINGS = "settings.yaml"


def refuse_unwritable(root: Path) -> None:
    """Check, without writing, that a folder is there and can be written, or can be made.

    Raises:
        UserError: it is not.
    """
    try:
        there = next(path for path in (root, *root.absolute().parents) if path.exists())
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"cannot write to {str(root)[:200]!r}: {error.args[-1]}") from error
    if not _is_text(root):
        raise UserError(
            f"cannot write to {root}: this name is not in UTF-8, and the report and the tables would name it"
        )
    if not there.is_dir():
        raise UserError(f"cannot write to {root}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {root}: no permission to write in {there}")


def _is_text(path: Path) -> bool:
    """Tell whether a path can be written in UTF-8: Python has lone surrogates for bytes that are not."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def others_results(root: Path, record: Mapping[str, Any]) -> list[str] | None:
    """Return what is there, if a run with this record cannot continue it, with a line for each difference; or None."""
    found = read_record(root / SETTINGS)
    if found is None:
        nameless = any((root / "results").glob("*.json"))
        return ["results, and no settings.yaml that says whose they are"] if nameless else None
    if found.get("format", 1) != FORMAT:
        return ["a run by an earlier version, whose label/ has the truths and input/ the measurements"]
    lines = differences(found, record)
    return ["a run with other settings", *(f"  {line}" for line in lines)] if lines else None


def refuse_others(root: Path, record: Mapping[str, Any]) -> None:
    """Raise UserError where the folder has results that a run with this record cannot continue."""
    others = others_results(root, record)
    if others is not None:
        what, *lines = others
        raise UserError(
            "\n".join([f"{root} holds {what}; take another --save_dir, or --overwrite to delete it:", *lines])
            if lines
            else f"{root} holds {what}: take another --save_dir, or --overwrite to delete it"
        )
