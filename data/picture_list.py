"""A text file that lists pictures, one path a line. Imports no torch."""

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from data.picture_files import SUFFIXES
from util.errors import UserError

MAX_BYTES = 64_000_000  # about a million paths

# Where a path may end and further columns begin: behind a picture's suffix.
_END = re.compile(rf"(?:{'|'.join(map(re.escape, SUFFIXES))}|\.npy|\.safetensors)(?=[\s,;])", re.IGNORECASE)

_LINE_END = re.compile(r"\r\n|\r|\n")


class Listed(NamedTuple):
    """A line of a list: a path as it is written there, and the number of a class where there is one."""

    path: Path
    label: int | None


def read_list(path: Path, root: Path) -> list[Listed]:
    """Read the pictures in a list, in its order.

    Lines are UTF-8. Empty ones, and those that begin with ``#``, count for nothing. Behind a path there may be further
    columns (`0001.png (480,480,3)`, `val_0001.JPEG 65`); a single whole number there is the picture's class.

    Args:
        path: the list.
        root: the folder that relative paths begin in. A path with spaces is told from columns by what is there.

    Raises:
        UserError: the file cannot be read or is no text, it is empty, a line is not the path of a file, or is
            there twice.
    """
    found: dict[Path, int] = {}
    pictures = []
    for number, line in enumerate(_LINE_END.split(_text(path)), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        picture = _split(line, root)
        if picture.path.name in ("", ".."):
            raise UserError(f"{str(path)!r}, line {number}: {str(picture.path)!r} is not the path of a file")
        first = found.setdefault(picture.path, number)
        if first != number:
            raise UserError(f"{str(path)!r}, line {number}: {str(picture.path)!r} is listed already, in line {first}")
        pictures.append(picture)
    if not pictures:
        raise UserError(f"{str(path)!r}: no pictures in this list")
    return pictures


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{str(path)!r}: cannot read this list: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r}: this list is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if len(content) > MAX_BYTES or "\0" in text:
        raise UserError(f"{str(path)!r}: not a list of pictures: expected a path on each line")
    return text


def _split(line: str, root: Path) -> Listed:
    """Split a line into its path and the columns behind it, in the first spelling whose file is there."""
    plain = line.strip()
    # Windows has other slashes, and systems differ in whether accents are letters of their own.
    spellings = [line, plain, plain.replace("\\", "/")]
    spellings += [unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain)]
    found = (_columns_apart(spelling, root) for spelling in spellings)
    return next((one for one in found if (root / one.path).is_file()), _columns_apart(plain, root))


def _columns_apart(line: str, root: Path) -> Listed:
    """Take columns off a line: behind the longest path that is there, or else the shortest."""
    ends = [match.end() for match in _END.finditer(line)]
    if not ends or (root / line).is_file():
        return Listed(Path(line), None)
    end = next((end for end in reversed(ends) if (root / line[:end]).is_file()), ends[0])
    columns = re.sub(r"[\s,;]+", " ", line[end:]).strip()
    return Listed(Path(line[:end]), int(columns) if re.fullmatch(r"[0-9]{1,9}", columns) else None)
