"""What is written of restorations while they last: their estimates, their traces, their states."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from util import sampler_state
from util.errors import ImageError, Terminated
from util.logger import LOGGER
from util.metrics import to_uint8
from util.results import PASSES, cell
from util.run import TRACE, RunFolder, state_path
from util.sampler_state import Progress, SamplerState

PROGRESS_PICTURES = 8
CURVE_POINTS = 200


class Recorder:
    """Follows one restoration: keeps its trace, writes its estimate at a few steps as pictures, and its state for the
    case that it is cut short.

    Args:
        run: where pictures go, as `progress/<name>/step_<step>.png`.
        name: the restoration's name.
        steps: sampling steps of the run.
        decode: latents (1, C, h, w) to images (1, 3, H, W) in [-1, 1].

    Attributes:
        trace: a row for each event of the sampler.
        seconds: that the restoration has taken; of what is spent on a batch, its share.
    """

    def __init__(self, run: RunFolder, name: str, steps: int, decode: Callable[[Tensor], Tensor]) -> None:
        self.trace: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._run, self._name, self._decode, self._steps = run, name, decode, steps
        self._chosen = {round(part * (steps - 1) / (PROGRESS_PICTURES - 1)) for part in range(PROGRESS_PICTURES)}
        self._latest: Progress | None = None

    @property
    def done(self) -> int:
        """Steps that are done, of the latest state."""
        return 0 if self._latest is None else self._latest.state.done

    def passes(self) -> list[int]:
        """Return how often each network ran for the restoration, in the order of `PASSES`."""
        return [sum(row.get(kind) or 0 for row in self.trace) for kind in PASSES]  # a state may be an earlier version's

    def resume(self, generator: torch.Generator) -> None:
        """Go on from the state that an earlier process left for this restoration with this generator, if it did."""
        found = sampler_state.read(self._run.root / state_path(self._name), generator)
        if found is not None:
            blank = {**dict.fromkeys(TRACE), "losses": []}  # an earlier version's state has fewer columns
            self._latest = found._replace(trace=[{**blank, **row} for row in found.trace])
            self.seconds = found.seconds
            LOGGER.info("%s: going on after %d of %d steps", self._name, self.done, self._steps)

    def rewind(self) -> SamplerState | None:
        """Return the latest state, with the trace as it was then; None is the beginning."""
        self.trace = [] if self._latest is None else self._latest.trace[:]
        return None if self._latest is None else self._latest.state

    def event(self, event: Any) -> None:
        """Keep an event of the sampler (a dataclass instance with the attributes `TRACE`)."""
        row = {key: getattr(event, key) for key in TRACE}
        self.trace.append({**row, "losses": thinned(event.losses)})
        cells = {key: cell(value) for key, value in row.items()}
        LOGGER.debug("%s: %s", self._name, " ".join(f"{key}={text}" for key, text in cells.items() if text))

    def estimate(self, latent: Tensor, step: int) -> None:
        """Write the estimate of the clean latent (1, C, h, w) after a step, if it is one of the chosen ones."""
        if step in self._chosen:
            self._run.write_picture(f"progress/{self._name}", f"step_{step:04d}", to_uint8(self._decode(latent)))

    def keep(self, state: SamplerState) -> None:
        """Keep the state after a step."""
        self._latest = Progress(state, self.trace[:], self.seconds)

    def write_state(self) -> None:
        """Write the latest state, unless the restoration is finished."""
        if self._latest is not None and not self._run.is_done(self._name):
            self._run.write_state(self._name, self._latest)

    def write_trace(self) -> None:
        """Write the trace of a restoration that has ended."""
        self._run.write_trace(self._name, self.trace)


def thinned(losses: Sequence[float], most: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """Return losses with their iterations (from 0): all, or the first, the last and so many evenly between."""
    if len(losses) <= most:
        return list(enumerate(losses))
    chosen = (round(place * (len(losses) - 1) / (most - 1)) for place in range(most))
    return [(iteration, losses[iteration]) for iteration in chosen]


class Regroup(Exception):  # noqa: N818 (not an error)
    """Some of a batch have failed: the others can go on without them, from the states that were kept."""


class BatchRecorder:
    """Hands what a sampler tells of a batch on to the recorder of each, as long as that has not failed.

    As a context manager, it writes the states when it is left by Ctrl-C or SIGTERM.

    Args:
        recorders: in the batch's order.
        minutes: between two writings of the states; 0 never writes them.

    Attributes:
        lost: what ended those that have failed, by position.
    """

    def __init__(self, recorders: Sequence[Recorder], minutes: float = 0.0) -> None:
        self.lost: dict[int, ImageError] = {}
        self._recorders, self._minutes = recorders, minutes
        self._written, self._clock = time.monotonic(), time.perf_counter()

    def __enter__(self) -> "BatchRecorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt | Terminated):
            self.write_states()

    def event(self, event: Any) -> None:
        """Keep an event of the sample that it is of."""
        self._recorders[event.sample].event(event)

    def estimate(self, latents: Tensor, step: int) -> None:
        """Write the estimates of the clean latents (B, C, h, w) after a step; see `Recorder.estimate`."""
        for position, recorder in self._going_on():
            recorder.estimate(latents[position : position + 1], step)

    def fail(self, error: ImageError) -> None:
        """Keep what ended one of them.

        Raises:
            Regroup: it was the last one.
        """
        self.lost[error.sample] = error
        if len(self.lost) == len(self._recorders):
            raise Regroup

    def keep(self, states: Sequence[SamplerState]) -> None:
        """Keep the states after a step, and write them when it is time.

        Raises:
            Regroup: some have failed.
        """
        self.share_time()
        for position, recorder in self._going_on():
            recorder.keep(states[position])
        if time.monotonic() >= self._written + 60 * self._minutes:
            self.write_states()
        if self.lost:
            raise Regroup

    def share_time(self) -> None:
        """Share out the time since the last call, or since the beginning."""
        since, self._clock = self._clock, time.perf_counter()
        for recorder in self._recorders:
            recorder.seconds += (self._clock - since) / len(self._recorders)

    def _going_on(self) -> list[tuple[int, Recorder]]:
        return [(position, own) for position, own in enumerate(self._recorders) if position not in self.lost]

    def write_states(self) -> None:
        """Write the states of those that go on, if they are to be written at all."""
        if self._minutes:
            for _, recorder in self._going_on():
                recorder.write_state()
        self._written = time.monotonic()
