"""Classes of a class-conditional model by name, where a file beside its configuration lists them."""

from pathlib import Path

from util.errors import UserError
from util.words import unknown


def class_number(text: str, config: Path) -> int:
    """Return the class that a word of the command line asks for: a number, or a name.

    Names are in a text file beside the model's configuration, `<configuration>.classes.txt`: the n-th line is class
    n - 1, and holds one name or several with commas between (as in "tench, Tinca tinca"). Letter case does not count.

    Raises:
        UserError: no such name, more than one class of that name, or no list of names.
    """
    try:
        return int(text)
    except ValueError:
        pass
    path = config.with_suffix(".classes.txt")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--class_label {text!r}: give the class's number, or list names in {path} ({reason})"
        ) from error
    numbers: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        for name in {name.strip() for name in line.split(",")} - {""}:
            numbers.setdefault(name.lower(), []).append(number)
    found = numbers.get(text.strip().lower(), [])
    if not found:
        close = unknown("class", text, numbers)
        raise UserError(
            f"{path}: {str(close).partition('known:')[0].rstrip(' :')} ({len(lines)} classes are listed there)"
        )
    if len(found) > 1:
        raise UserError(f"{path}: {text!r} is the name of classes {', '.join(map(str, found))}: give the number")
    return found[0]
