"""Which of several processes this one is. They share a run's folder and nothing else: no process talks to another."""

import os
from collections.abc import Sequence


def rank() -> int:
    """Return this process's number among all that torch's launcher (`torchrun`) started; 0 without the launcher."""
    return _number("RANK")


def local_rank() -> int:
    """Return this process's number among those that the launcher started on this machine; 0 without the launcher."""
    return _number("LOCAL_RANK")


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def share(names: Sequence[str], shard: tuple[int, int] | None) -> list[str]:
    """Return part i of n (from 1) of the names, (i, n) being the ``shard``; None is all of them."""
    return list(names) if shard is None else list(names[shard[0] - 1 :: shard[1]])
