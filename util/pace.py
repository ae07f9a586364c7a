"""How far a run is, and how long the rest will take."""

import time
from collections.abc import Collection

from tqdm import tqdm


class Pace:
    """Counts what is finished of what is wanted, by whichever process, from when this was made.

    Args:
        wanted: names of all that is to be done.
        finished: names of what is done already, and maybe of other things.
    """

    def __init__(self, wanted: Collection[str], finished: Collection[str]) -> None:
        self._wanted = set(wanted)
        self._before, self._started = self._count(finished), time.monotonic()

    def _count(self, finished: Collection[str]) -> int:
        return len(self._wanted.intersection(finished))

    def text(self, finished: Collection[str]) -> str:
        """Return in words how much is done, given the names of what is finished by now, and the time left."""
        done, total = self._count(finished), len(self._wanted)
        text = f"{done} of {total}"
        if self._before < done < total:
            seconds = (time.monotonic() - self._started) * (total - done) / (done - self._before)
            text += f", {tqdm.format_interval(seconds)} left"
        return text
