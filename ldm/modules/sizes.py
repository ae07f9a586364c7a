"""What sizes of networks a configuration may ask for.

The bounds are far above any published model's. Without them a line of YAML could have a network built for hours.
"""

from collections.abc import Sequence
from typing import Any

from util.checks import whole_number
from util.errors import UserError

MAX_BLOCKS = 100  # at one resolution
MAX_LEVELS = 12  # resolutions, each half the one before
MAX_CHANNELS = 1 << 16
MAX_ENTRIES = 1 << 24  # of a codebook, or classes
MAX_SIDE = 1 << 16  # pixels or latent cells


def check_channels(**channels: Any) -> None:
    """Check numbers of channels, or of attention heads, by the settings' names.

    Raises:
        UserError: one is no whole number from 1 to `MAX_CHANNELS`.
    """
    for name, value in channels.items():
        whole_number(name, value, 1, MAX_CHANNELS)


def check_levels(name: str, multipliers: Any, channels: int) -> None:
    """Check the factors by which each level of a network has more channels than the first.

    Raises:
        UserError: there are none, or too many, or one is no whole number that keeps below `MAX_CHANNELS`.
    """
    if not isinstance(multipliers, Sequence) or isinstance(multipliers, str) or not 1 <= len(multipliers) <= MAX_LEVELS:
        raise UserError(f"{name}: expected a list of 1 to {MAX_LEVELS} factors, got {multipliers!r:.80}")
    for factor in multipliers:
        whole_number(f"each of {name}", factor, 1, MAX_CHANNELS // channels)
