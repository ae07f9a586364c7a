"""Weights that are spread over several files, which an index lists."""

import json
import re
from pathlib import Path
from typing import Any

from util.errors import UserError

MAX_BYTES = 20_000_000  # of a JSON file: an index has a line for each tensor
_SHARD = re.compile(r"(?P<stem>.+?)(?P<word>\.\w+)?-\d{5}-of-(?P<count>\d{5})\.(?P<suffix>safetensors|bin)")
_INDEX = re.compile(r".+\.index(\.\w+)?\.json")  # the word is that of the shards' names, such as fp16


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is a mapping.

    Raises:
        UserError: it is not there, too large, or something else.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        found = json.loads(content) if len(content) <= MAX_BYTES else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object with settings")
    return found


def is_index(path: Path) -> bool:
    """Whether a file is called as the index of shards is."""
    return _INDEX.fullmatch(path.name) is not None


def files_of(path: Path) -> list[Path]:
    """Return all files of the weights that a file belongs to: of an index or a shard, every shard; else itself.

    Raises:
        UserError: a shard or the index is missing.
    """
    if is_index(path):
        return _listed(path)
    found = _SHARD.fullmatch(path.name)
    if not found:
        return [path]
    stem, word, suffix = found["stem"], found["word"] or "", found["suffix"]
    indices = [path.with_name(f"{stem}.{suffix}.index{word}.json"), path.with_name(f"{stem}{word}.{suffix}.index.json")]
    for index in indices:
        if index.is_file():
            return _listed(index)
    raise UserError(
        f"{path} is one of {int(found['count'])} shards, and {indices[0].name}, which lists them, is missing"
    )


def _listed(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index}: expected weight_map, which tells the file of each tensor")
    names = sorted(set(table.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names a file outside its folder: {name!a:.100}")
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name} is missing: {index.name} lists {len(names)} files")
    return [index.parent / name for name in names]
