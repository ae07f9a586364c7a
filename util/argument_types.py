"""Types of the command's arguments: each turns a word into a value, or says what is expected."""

import argparse
import math
from collections.abc import Callable


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argument type: a whole number from `least` to `most` (None: no limit)."""
    expected = f"a whole number, {least} or more" if most is None else f"a whole number from {least} to {most}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return convert


def minutes(text: str) -> float:
    """Read an argument: a finite number of minutes, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected minutes, 0 or more, got {text!r}")
    return value


def shard(text: str) -> tuple[int, int]:
    """Read an argument `i/n`, with i from 1 to n."""
    try:
        part, parts = map(int, text.split("/"))
    except ValueError:
        part, parts = 0, 0
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"expected I/N, from 1/N to N/N, got {text!r}")
    return part, parts
