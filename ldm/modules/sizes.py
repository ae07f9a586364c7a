"""Types for the sizes of networks that a configuration may ask for.

The bounds are far above any published model's. Without them a line of YAML could have a network built for hours.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator

from util.settings import Flag, number, whole

MAX_LEVELS = 12  # resolutions, each half the one before
MAX_CHANNELS = 1 << 16

Channels = Annotated[int, whole(1, MAX_CHANNELS)]
Heads = Annotated[int, whole(-1, MAX_CHANNELS)]  # -1: not given, as published files have it
Blocks = Annotated[int, whole(1, 100)]  # at one resolution
Entries = Annotated[int, whole(1, 1 << 24)]  # of a codebook, or classes
Side = Annotated[int, whole(1, 1 << 16)]  # pixels or latent cells
Factor = Annotated[float, number(0, 1 << 12, above_low=True)]  # whole or not: channels are rounded

T = TypeVar("T")


def _levels(value: Any) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= MAX_LEVELS:
        raise ValueError(f"expected a list of 1 to {MAX_LEVELS}, one for each level")
    return value


# One for each level of a network, the highest resolution first.
Levels = Annotated[tuple[T, ...], BeforeValidator(_levels)]
Factors = Levels[Factor]
Flags = Levels[Flag]


def widths(channels: int, factors: tuple[float, ...]) -> list[int]:
    """Return the channels of each level: ``channels`` times its factor."""
    return [max(1, round(channels * factor)) for factor in factors]


def each_level(value: T | tuple[T, ...], levels: int, name: str) -> list[T]:
    """Return a value for each level: the one that is given, or one of as many.

    Raises:
        ValueError: another number of them.
    """
    values = list(value) if isinstance(value, tuple) else [value] * levels
    if len(values) != levels:
        raise ValueError(f"{name} has {len(values)} entries for {levels} levels")
    return values
