"""How far this process is with its share of a run, and how long the rest will take."""

import time

from tqdm import tqdm


class Countdown:
    """Counts restorations as they end, from when this was made.

    Args:
        total: restorations that this process is to make.
    """

    def __init__(self, total: int) -> None:
        self._total, self._done, self._started = total, 0, time.monotonic()

    def one_more(self) -> str:
        """Count one more, and return in words how many are done and the time left."""
        self._done += 1
        text = f"{self._done} of {self._total}"
        if self._done < self._total:
            seconds = (time.monotonic() - self._started) * (self._total - self._done) / self._done
            text += f", {tqdm.format_interval(seconds)} left"
        return text
