"""Writes estimates, traces and states during restorations."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.results import PASSES, cell
from ldm_inverse.runs.sampler_state import Progress, SamplerState
from ldm_inverse.runs.trace import TRACE
from ldm_inverse.solvers.observer import Event, Lost, Observer, StageEnded, State, StepEnded
from util.errors import Terminated
from util.logging import LOGGER
from util.metrics import to_uint8
from util.processes import heed_interruption

PROGRESS_PICTURES = 8
CURVE_POINTS = 200


class Recorder:
    """Follows one restoration: keeps its trace, writes its estimate at a few steps as pictures, and its state, in case
    it is interrupted.

    Args:
        run: where pictures go, as `progress/<name>/step_<step>.png`.
        name: the restoration's name.
        steps: sampling steps of the run.
        decode: latents (1, C, h, w) to images (1, C, H, W) in [-1, 1].
        generator: the restoration's noise source, as it is before the first step.

    Attributes:
        trace: a row for each event of the sampler.
        seconds: that the restoration has taken; of what is spent on a batch, its share.
    """

    def __init__(
        self, run: RunFolder, name: str, steps: int, decode: Callable[[Tensor], Tensor], generator: Generator
    ) -> None:
        self.generator = generator
        self._beginning = generator.get_state()
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

    def resume(self) -> None:
        """Continue from the state that an earlier process left for this restoration, if there is one."""
        found = self._run.read_state(self._name, self.generator)
        if found is not None:
            # An earlier version's state has fewer columns.
            blank: dict[str, Any] = {**dict.fromkeys(TRACE), "losses": []}
            self._latest = found._replace(trace=[{**blank, **row} for row in found.trace])
            self.seconds = found.seconds
            LOGGER.info("%s: continuing after %d of %d steps", self._name, self.done, self._steps)

    def rewind(self) -> SamplerState | None:
        """Return the latest state, with trace and noise source as they were then; None is the beginning."""
        self.trace = [] if self._latest is None else self._latest.trace[:]
        state = None if self._latest is None else self._latest.state
        self.generator.set_state(self._beginning if state is None else state.generator)
        return state

    def event(self, event: StageEnded) -> None:
        """Keep what was done to the restoration."""
        known = {**event.evaluations._asdict(), "iterations": event.iterations}
        known |= {"first_loss": event.first_loss, "last_loss": event.last_loss}
        row = {key: known[key] if key in known else getattr(event, key) for key in TRACE}
        self.trace.append({**row, "losses": thinned(event.losses)})
        cells = {key: cell(value) for key, value in row.items()}
        LOGGER.debug("%s: %s", self._name, " ".join(f"{key}={text}" for key, text in cells.items() if text))

    def estimate(self, latent: Tensor, step: int) -> None:
        """Write the estimate of the clean latent (1, C, h, w) after a step, if it is one of the chosen ones."""
        if step in self._chosen:
            self._run.write_picture(f"progress/{self._name}", f"step_{step:04d}", to_uint8(self._decode(latent)))

    def keep(self, done: int, latent: Tensor, best: Tensor | None) -> None:
        """Keep the state after a step; as of `SamplerState`."""
        state = SamplerState(done, latent, self.generator.get_state(), best)
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


class BatchRecorder:
    """The observer of a batch: hands what a sampler tells on to the recorder of each, unless that is lost.

    As a context manager, it writes the states when it is left by Ctrl-C or SIGTERM.

    Args:
        recorders: in the batch's order.
        minutes: between two writings of the states; 0 never writes them.
        bar: is told of everything as well.

    Attributes:
        lost: what ended those that are lost, by position.
    """

    def __init__(self, recorders: Sequence[Recorder], minutes: float = 0.0, bar: Observer | None = None) -> None:
        self.lost: dict[int, Lost] = {}
        self._recorders, self._minutes, self._bar = recorders, minutes, bar
        self._written, self._clock = time.monotonic(), time.perf_counter()

    def __enter__(self) -> "BatchRecorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt | Terminated):
            self.write_states()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        heed_interruption()
        match event:
            case StageEnded():
                self._recorders[event.sample].event(event)
            case StepEnded():
                for position, recorder in self._going_on():
                    recorder.estimate(event.estimate[position : position + 1], event.step)
                self._keep(event.state)
            case Lost():
                self.lost[event.sample] = event
        if self._bar is not None:
            self._bar(event)

    def _keep(self, state: State) -> None:
        """Keep the states after a step, and write them when it is time."""
        self.share_time()
        for position, recorder in self._going_on():
            own = slice(position, position + 1)
            recorder.keep(state.done, state.latent[own], None if state.best is None else state.best[own])
        if time.monotonic() >= self._written + 60 * self._minutes:
            self.write_states()

    def rewind(self) -> State | None:
        """Let all go back to where they stand, after the same number of steps; None is the beginning."""
        states = [state for state in (recorder.rewind() for recorder in self._recorders) if state is not None]
        if not states:
            return None
        best = [state.best for state in states if state.best is not None]
        return State(states[0].done, torch.cat([state.latent for state in states]), torch.cat(best) if best else None)

    def share_time(self) -> None:
        """Share out the time since the last call, or since the beginning."""
        since, self._clock = self._clock, time.perf_counter()
        for recorder in self._recorders:
            recorder.seconds += (self._clock - since) / len(self._recorders)

    def _going_on(self) -> list[tuple[int, Recorder]]:
        return [(position, own) for position, own in enumerate(self._recorders) if position not in self.lost]

    def write_states(self) -> None:
        """Write the states of unfinished restorations, if states are to be written at all."""
        if self._minutes:
            for _, recorder in self._going_on():
                recorder.write_state()
        self._written = time.monotonic()
