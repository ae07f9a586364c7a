"""A text file that lists pictures, one path a line. Imports no torch."""

from pathlib import Path

from util.errors import UserError

MAX_BYTES = 64_000_000  # about a million paths


def read_list(path: Path) -> list[Path]:
    """Read the paths in a list, in its order, as they are written there: relative ones are so to the list's folder.

    Lines are UTF-8; empty ones count for nothing.

    Raises:
        UserError: the file cannot be read or is no text, it is empty, a line is no file's path, or is
            there twice.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{str(path)!r}: cannot read this list: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r}: this list is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if len(content) > MAX_BYTES or "\0" in text:
        raise UserError(f"{str(path)!r}: no list of pictures: expected a path on each line")
    paths: dict[Path, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        written = Path(line.rstrip("\r"))
        if written.name in ("", ".."):
            raise UserError(f"{str(path)!r}, line {number}: {str(written)!r} is no file's path")
        if written in paths:
            raise UserError(
                f"{str(path)!r}, line {number}: {str(written)!r} is there already, in line {paths[written]}"
            )
        paths[written] = number
    if not paths:
        raise UserError(f"{str(path)!r}: no pictures in this list")
    return list(paths)
