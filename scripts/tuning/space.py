"""The settings to search: which values each may take, and how one is drawn."""

import re
from dataclasses import dataclass

import numpy as np

from scripts.sweeps.points import split_values
from util.errors import UserError

RANGE = re.compile(r"(?P<low>[-+.\w]+?)\.\.(?P<high>[-+.\w]+)")


@dataclass(frozen=True)
class Axis:
    """One setting of the search.

    Attributes:
        key: the setting's dotted name.
        values: the values to choose from, as words; empty for a range.
        low, high: the ends of a range.
        whole: only whole numbers are drawn from the range.
        log: the logarithm is uniform, not the number.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    @property
    def fixed(self) -> bool:
        """Whether there is only one value."""
        return len(self.values) == 1

    def draw(self, rng: np.random.RandomState) -> str:
        """Draw a value, as the word `key=value`; numbers that are not whole have three digits."""
        if self.values:
            return f"{self.key}={self.values[rng.randint(len(self.values))]}"
        ends = np.array([self.low, self.high + 1 if self.whole else self.high])
        low, high = np.log(ends) if self.log else ends
        value = rng.uniform(low, high)
        value = float(np.exp(value)) if self.log else value
        return f"{self.key}={min(int(np.floor(value)), int(self.high)) if self.whole else f'{value:.3g}'}"


def read_axis(word: str) -> Axis:
    """Return what a word says: `key=LOW..HIGH`, `key=log:LOW..HIGH`, `key=value,value,...` or `key=value`.

    Raises:
        UserError: it is none of these, or a range is empty, or one by logarithm does not begin above 0.
    """
    key, values = split_values(word)
    text = values[0].removeprefix("log:")
    found = RANGE.fullmatch(text) if len(values) == 1 else None
    if found is None:
        if values[0].startswith("log:"):
            raise UserError(f"{word}: expected {key}=log:LOW..HIGH")
        return Axis(key, tuple(values))
    log = values[0].startswith("log:")
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError as error:
        raise UserError(f"{word}: expected two numbers, {key}=LOW..HIGH") from error
    if not (np.isfinite([low, high]).all() and low < high and (low > 0 or not log)):
        raise UserError(f"{word}: expected LOW below HIGH" + (", both above 0" if log else ""))
    whole = all(re.fullmatch(r"[-+]?\d+", found[end]) for end in ("low", "high"))
    return Axis(key, low=low, high=high, whole=whole, log=log)
