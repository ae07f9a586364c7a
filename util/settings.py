"""The one system for settings: what a value must be is told by its type, and a mistake is told in one line.

A group of settings is a class derived from `Settings` (a frozen pydantic model); `read` makes one of a mapping. What is
registered by name (`util.registry`) may instead be a class or function whose annotated keywords are its settings:
`signature_model` makes a group of them. No torch here: settings are checked before anything heavy loads.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    create_model,
)

from util.errors import UserError
from util.words import unknown

# Larger numbers mean nothing here, and their squares overflow in float32.
LARGEST = 1e15

S = TypeVar("S", bound=BaseModel)


class Settings(BaseModel):
    """A group of settings: frozen, every value checked, unknown keys refused, numbers finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, ser_json_inf_nan="constants"
    )

    def to_plain(self) -> dict[str, Any]:
        """Return the settings as plain values and mappings, which `read` turns back into these settings."""
        return self.model_dump(mode="json")


# Types of values. A validator raises ValueError with what was expected; `read` says where, and what was found.


def number(
    low: float = -LARGEST, high: float = LARGEST, *, above_low: bool = False, below_high: bool = False
) -> BeforeValidator:
    """Return the check for a finite number from ``low`` to ``high``; ``above_low`` and ``below_high`` leave these out.

    A number in text counts: YAML reads ``1e-6`` as text.
    """
    expected = _number_text(low, high, above_low, below_high)

    def check(value: Any) -> float:
        try:
            result = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            result = math.nan
        if not low <= result <= high or (above_low and result == low) or (below_high and result == high):
            limit = f", up to {LARGEST:g}" if high == LARGEST < result else ""
            raise ValueError(f"expected {expected}{limit}")
        return result

    return BeforeValidator(check)


def _number_text(low: float, high: float, above_low: bool, below_high: bool) -> str:
    if low == -LARGEST and high == LARGEST:
        return "a finite number"
    if high == LARGEST:
        return f"a number above {low:g}" if above_low else f"a number, {low:g} or more"
    upper = f"below {high:g}" if below_high else f"{high:g}"
    if above_low:
        return f"a number above {low:g}, {'and' if below_high else 'up to'} {upper}"
    return f"a number from {low:g} to {upper}"


def whole(low: int, high: int | None = None, *, odd: bool = False) -> BeforeValidator:
    """Return the check for a whole number from ``low`` to ``high`` (None: a billion), odd where asked for."""
    kind = "an odd number" if odd else "a whole number"
    expected = f"{kind}, {low} or more" if high is None else f"{kind} from {low} to {high}"
    top = 10**9 if high is None else high

    def check(value: Any) -> int:
        try:
            result = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            result = math.nan
        if top < result < math.inf:
            raise ValueError(f"expected {kind} from {low} to {top:g}")
        if not low <= result <= top or not result.is_integer() or (odd and result % 2 == 0):
            raise ValueError(f"expected {expected}")
        return int(result)

    return BeforeValidator(check)


def _share(value: Any) -> Fraction:
    """Kept as a ratio, so that a third of S steps is S // 3 for every S."""
    try:
        share = Fraction(-1) if isinstance(value, bool) else Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise ValueError("expected a share from 0 to 1, such as 0.25 or 1/3")
    return share


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


def _low_below_high(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError("expected [low, high], low below high")
    return pair


Number = Annotated[float, number()]
Positive = Annotated[float, number(0, above_low=True)]
NotNegative = Annotated[float, number(0)]
BelowOne = Annotated[float, number(0, 1, below_high=True)]
Unit = Annotated[float, number(0, 1)]
Count = Annotated[int, whole(1)]
Whole = Annotated[int, whole(0)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[str, BeforeValidator(_text)]
Span = Annotated[tuple[Number, Number], AfterValidator(_low_below_high)]
Share = Annotated[Fraction, BeforeValidator(_share), PlainSerializer(str)]


# From mappings to settings.


def read(model: type[S], values: Any, where: str = "") -> S:
    """Make a group of settings of a mapping.

    Args:
        model: the group's class.
        values: what differs from the defaults, as plain values and mappings (None: nothing does).
        where: the mapping's dotted path, for error messages.

    Raises:
        UserError: unknown keys (the nearest known one is offered), keys that are missing and have no default, values of
            the wrong type or range: one line for each.
    """
    if values is not None and not isinstance(values, Mapping):
        raise UserError(f"{where or 'settings'}: expected a mapping of settings, got {values!r:.100}")
    try:
        return model.model_validate(dict(values or {}))
    except ValidationError as error:
        raise UserError("\n".join(_lines(error, model, where).values())) from error


def mistakes(model: type[BaseModel], values: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """Return what is wrong with a mapping for a group of settings: a line for each, by the keys that lead to it.

    There is none where `read` would make settings of it.
    """
    try:
        model.model_validate(dict(values))
        return {}
    except ValidationError as error:
        return _lines(error, model, "")


def _lines(error: ValidationError, model: type[BaseModel], where: str) -> dict[tuple[str, ...], str]:
    """A line for each mistake that pydantic found in settings of a class, whose mapping is at ``where``.

    Of a value that may be of several types, pydantic tells what is wrong for each: the deepest mistake is the one told.
    """
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_keys(detail, model), []).append(detail)
    inner = [path for path in found if not any(other != path and other[: len(path)] == path for other in found)]
    return {path: _line(found[path], path, model, where) for path in inner}


def _keys(detail: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, ...]:
    """The keys that lead to a mistake: pydantic's location without its names for the alternatives of a union."""
    keys: list[str] = []
    groups = [model]
    for position, step in enumerate(detail["loc"], start=1):
        is_field = any(step in group.model_fields for group in groups)
        is_unknown = position == len(detail["loc"]) and detail["type"] == "extra_forbidden"
        if isinstance(step, int) or is_field or is_unknown:
            keys.append(str(step))
            groups = _groups(groups, str(step))
    return tuple(keys)


def _groups(models: Iterable[type[BaseModel]], name: str) -> list[type[BaseModel]]:
    """The groups of settings that a field of one of these models may hold."""

    def within(hint: Any) -> Iterable[type[BaseModel]]:
        if isinstance(hint, type) and get_origin(hint) is None:
            return [hint] if issubclass(hint, BaseModel) else []
        return [group for inner in get_args(hint) for group in within(inner)]

    if name.isdigit():  # an entry of a sequence: it has what the sequence's field may hold
        return list(models)
    return [
        group for model in models if name in model.model_fields for group in within(model.model_fields[name].annotation)
    ]


def _line(details: list[Mapping[str, Any]], path: tuple[str, ...], model: type[BaseModel], where: str) -> str:
    """A line for the mistakes at one place: more than one where none of several types fits."""
    groups = [model]
    for key in path[:-1]:
        groups = _groups(groups, key)
    parent, full = (".".join((*filter(None, [where]), *keys)) for keys in (path[:-1], path))
    kind = details[0]["type"]
    if kind == "extra_forbidden":
        known = {name for group in groups for name in group.model_fields}
        return str(unknown(f"setting of {parent}" if parent else "setting", path[-1], known))
    if kind == "missing" and not path[-1].isdigit():
        return f"{parent or 'settings'} needs {path[-1]}"
    expected = dict.fromkeys(_expected(detail) for detail in details)  # in their order, each once
    return f"{full}: expected {', or '.join(expected)}, got {details[0]['input']!r:.100}"


def _expected(detail: Mapping[str, Any]) -> str:
    """Say which values are expected."""
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"]).removeprefix("expected ")
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"])
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "a mapping of settings"
    if detail["type"] == "missing":  # in a sequence of fixed length
        return "one entry more"
    if detail["type"] == "too_long":
        return f"a list of at most {detail['ctx']['max_length']}"
    if detail["type"] in ("tuple_type", "list_type"):
        return "a list"
    return detail["msg"].removeprefix("Input should be ")


# Settings in a signature.


@cache
def signature_model(factory: Callable[..., Any]) -> type[BaseModel]:
    """Return the group of settings that a class's or function's keywords make, by their annotations and defaults.

    A keyword without an annotation takes anything; a factory with ``**keywords`` takes any others as well.
    """
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    config = ConfigDict(extra=extra, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(getattr(factory, "__name__", "settings"), __config__=config, **fields)


def keywords(factory: Callable[..., Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the keywords ``values`` for a class or function, checked and in its types.

    Raises:
        UserError: as `read`.
    """
    group = read(signature_model(factory), values, where)
    return {name: getattr(group, name) for name in values}
