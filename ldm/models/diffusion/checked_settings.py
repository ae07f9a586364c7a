"""Settings as frozen dataclasses that check themselves.

No torch here: settings are checked before anything heavy loads.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from fractions import Fraction
from typing import Annotated, Any, get_type_hints

from util.errors import UserError
from util.registry import unknown

# Checks: each returns the value in its type, or raises a ValueError that says what it must be.


def _parse(value: Any) -> float:
    """A number as a YAML file or a command line gives it (``1e-6`` may arrive as text); NaN where it is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _positive(value: Any) -> float:
    number = _parse(value)
    if not 0 < number < math.inf:
        raise ValueError("must be a number above 0")
    return number


def _not_negative(value: Any) -> float:
    number = _parse(value)
    if not 0 <= number < math.inf:
        raise ValueError("must be a number, 0 or more")
    return number


def _below_one(value: Any) -> float:
    number = _parse(value)
    if not 0 <= number < 1:
        raise ValueError("must be a number from 0 to below 1")
    return number


def _count(value: Any) -> int:
    number = _parse(value)
    if not (number >= 1 and number.is_integer()):
        raise ValueError("must be a whole number, 1 or more")
    return int(number)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _share(value: Any) -> Fraction:
    """Kept as a ratio, so that a third of S steps is S // 3 for every S."""
    try:
        share = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise ValueError("must be a share from 0 to 1, such as 0.25 or 1/3")
    return share


def one_of(*words: str) -> Callable[[Any], str]:
    """Return the check for one of some words."""

    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return check


def optional(hint: Any) -> Callable[[Any], Any]:
    """Return the check for a value of an annotated type of these, or None."""

    def check(value: Any) -> Any:
        try:
            return None if value is None else hint.__metadata__[0](value)
        except ValueError as error:
            raise ValueError(f"{error}, or null") from None

    return check


Positive = Annotated[float, _positive]
NotNegative = Annotated[float, _not_negative]
BelowOne = Annotated[float, _below_one]
Count = Annotated[int, _count]
Flag = Annotated[bool, _flag]
Share = Annotated[Fraction, _share]


@dataclass(frozen=True)
class CheckedSettings:
    """A group of settings. Every field passes its type's check, however the group is made; a bad one is a UserError."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, _check(hint, value))
            except ValueError as error:
                raise UserError(f"{name} is {value!r}: {error}") from None

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, where: str) -> "CheckedSettings":
        """Settings from a mapping of those that differ from the defaults (None: none does).

        Args:
            config: plain values and mappings, as from a YAML file.
            where: the mapping's dotted path, for error messages.

        Raises:
            UserError: an unknown key (the nearest known one is offered), one that is missing and has no default, or a
                value of the wrong type or range.
        """
        if not isinstance(config, Mapping | None):
            raise UserError(f"{where} is {config!r}: must be a mapping of settings")
        hints = get_type_hints(cls)
        values = {}
        for key, value in (config or {}).items():
            if key not in hints:
                raise unknown(f"setting of {where}", key, hints)
            values[key] = hints[key].from_config(value, f"{where}.{key}") if _is_group(hints[key]) else value
        missing = [setting.name for setting in fields(cls) if _is_required(setting) and setting.name not in values]
        if missing:
            raise UserError(f"{where} needs {', '.join(missing)}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}.{error}") from None

    def to_config(self) -> dict[str, Any]:
        """The mapping of plain values that `from_config` turns back into these settings."""
        plain = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        for key, value in plain.items():
            if isinstance(value, CheckedSettings):
                plain[key] = value.to_config()
            elif isinstance(value, Fraction):
                plain[key] = str(value)
        return plain


def _is_required(setting: Field) -> bool:
    """Whether a field of a dataclass has no default."""
    return setting.default is MISSING and setting.default_factory is MISSING


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, CheckedSettings)


def _check(hint: Any, value: Any) -> Any:
    if not _is_group(hint):
        return hint.__metadata__[0](value)
    if not isinstance(value, hint):
        raise ValueError(f"must be {hint.__name__}")
    return value
