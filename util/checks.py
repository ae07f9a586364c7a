"""Range checks of settings: each returns the value in its proper type, or raises a line that says what is expected."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from util.errors import UserError


def _refuse(name: str, expected: str, value: Any) -> UserError:
    return UserError(f"{name}: expected {expected}, got {value!r}")


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return an integer from ``low`` to ``high`` (None: no limit).

    Raises:
        UserError: not an integer, or outside the range.
    """
    expected = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _refuse(name, expected, value)
    if value < low or (high is not None and value > high):
        raise _refuse(name, expected, value)
    return int(value)


def odd_number(name: str, value: Any, low: int, high: int) -> int:
    """Return an odd integer from ``low`` to ``high``.

    Raises:
        UserError: not an integer, even, or outside the range.
    """
    expected = f"an odd number from {low} to {high}"
    try:
        value = whole_number(name, value, low, high)
    except UserError:
        raise _refuse(name, expected, value) from None
    if value % 2 == 0:
        raise _refuse(name, expected, value)
    return value


def real_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above_low: bool = False
) -> float:
    """Return a finite float from ``low`` to ``high``; ``above_low`` leaves ``low`` itself out.

    Raises:
        UserError: not a number, not finite, or outside the range.
    """
    if above_low:
        expected = f"a number above {low:g}" + (f" and up to {high:g}" if math.isfinite(high) else "")
    elif math.isfinite(high):
        expected = f"a number from {low:g} to {high:g}"
    else:
        expected = "a number" + (f", {low:g} or more" if math.isfinite(low) else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise _refuse(name, expected, value)
    if not low <= value <= high or (above_low and value == low):
        raise _refuse(name, expected, value)
    return float(value)


def pair(name: str, value: Any, what: str) -> tuple[Any, Any]:
    """Return the two entries of a list or tuple; ``what`` says in the error what they should be.

    Raises:
        UserError: not a sequence of two.
    """
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) != 2:
        raise _refuse(name, f"{what}, as [low, high]", value)
    return value[0], value[1]
