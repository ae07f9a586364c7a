"""Reading the YAML files that a person writes: plain values only, and one clear line where that fails."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from util.errors import UserError

# Values in one file, aliases counted each time. A file that refers to itself has no end.
MAX_VALUES = 100_000
# A parser in Python takes seconds for a megabyte, and a device file has no end.
MAX_BYTES = 2_000_000


class _Loader(yaml.SafeLoader):
    """Safe YAML, in which `1e-3` is a number, a date is text, and a key may be there once only."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise UserError(f"line {key.start_mark.line + 1}: the key {key.value!r} appears twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_tuple(self, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(self.construct_sequence(node, deep=True))

    def refuse(self, node: yaml.Node) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise UserError(f"line {node.start_mark.line + 1}: the tag {tag!r} is refused; only !!python/tuple is known")


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader.construct_tuple)
_Loader.add_constructor(None, _Loader.refuse)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file. Besides plain values it may hold `!!python/tuple`, as published task files do.

    Returns:
        Nested dictionaries, lists, tuples and scalars.

    Raises:
        UserError: the file is not there, too large or not YAML, it refers to itself, a key is there twice, it has any
            other tag, or its top level is not a mapping; a text calls one of OmegaConf's functions, of which one reads
            the environment.
    """
    try:
        content = yaml.load(_read(path), _Loader)
        _check_extent(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {where}{problem}") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # a value that its tag belies
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{path}: expected settings (`key: value` lines), found {found}")
    return content


def _read(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"it is too large for settings: more than {MAX_BYTES:,} bytes")
    return content


def _check_extent(content: Any) -> None:
    """Raise UserError for a structure that contains itself, or one that aliases blow up; or for one of its texts."""
    todo = [content]
    for _ in range(MAX_VALUES):
        if not todo:
            return
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list | tuple):
            todo.extend(value)
        elif isinstance(value, str):
            _check_text(value)
    raise UserError(f"more than {MAX_VALUES:,} values, or one that contains itself")


def _check_text(text: str) -> None:
    """Raise UserError for a text in which OmegaConf would call a function (``${NAME:...}``, however put together)."""
    if ":" in text.partition("${")[2]:
        raise UserError(f"{text!a:.80} is refused: ${{...}} takes the name of another setting, and calls no function")
