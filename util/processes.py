"""Which of several processes this one is, which part of the work is its own, how its threads wait for each other, and
how it is asked to end. No process talks to another.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from util.errors import Terminated

T = TypeVar("T")
INTERRUPTIONS: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_received: list[int] = []  # signals that asked this process to end, since `interruptible` began


def rank() -> int:
    """Return this process's number among all that torch's launcher (`torchrun`) started; 0 without the launcher."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Return this process's number among those that the launcher started on this machine; 0 without the launcher."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """Return how many processes the launcher started on all machines; 1 without the launcher."""
    return max(_number("WORLD_SIZE", 1), rank() + 1)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


def share(items: Sequence[T], shard: tuple[int, int] | None) -> list[T]:
    """Return the items that are this process's own, by their positions in the whole list.

    Args:
        items: the whole list, the same in every process.
        shard: (i, n) takes part i of n, from 1; None is all. The launcher's ranks divide that part among them.
    """
    part, parts = shard or (1, 1)
    return list(items[part - 1 :: parts])[rank() :: world_size()]


def wait_briefly() -> None:
    """Let OpenMP's threads sleep at a barrier after some 10 microseconds of spinning; to be called before torch loads.

    By default they spin for milliseconds, and so keep the very thread that they wait for from a core: beside another
    busy process a restoration takes four times as long (docs/PERFORMANCE.md). What the environment says stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "400"


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGINT and Terminated at SIGTERM inside the block, in a process's main thread."""

    def interrupt(number: int, _: object) -> NoReturn:
        _received.append(number)
        raise INTERRUPTIONS[number]

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as in a shell's background jobs
    handled = [number for number in INTERRUPTIONS if not (number == signal.SIGINT and ignored)]
    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    except Exception:
        heed_interruption()  # C code that is interrupted while it imports raises another exception instead
        raise
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def heed_interruption() -> None:
    """Raise the exception of a signal that has come, again.

    Python drops an exception that a signal's handler raises inside a finaliser or a weak reference's callback. Whoever
    works for long calls this now and then, so that no request to end is lost.
    """
    if _received:
        raise INTERRUPTIONS[_received[0]]
