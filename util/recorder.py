"""What is written of a restoration while it lasts: its estimate, its trace, its state."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from util import sampler_state
from util.errors import ImageError, Terminated
from util.logger import LOGGER
from util.metrics import to_uint8
from util.results import cell
from util.run import TRACE, RunFolder, state_path
from util.sampler_state import Progress, SamplerState

PROGRESS_PICTURES = 8
CURVE_POINTS = 200


class Recorder:
    """Follows one restoration: keeps its trace, writes its estimate at a few steps as pictures, and its state for the
    case that it is cut short.

    Used as a context manager around the restoration, whose duration is then in `seconds`, and its trace in a file.

    Args:
        run: where pictures go, as `progress/<name>/step_<step>.png`.
        name: the restoration's name.
        steps: sampling steps of the run.
        decode: latents (1, C, h, w) to images (1, 3, H, W) in [-1, 1].
        minutes: between two writings of the state; 0 never writes it.
    """

    def __init__(
        self, run: RunFolder, name: str, steps: int, decode: Callable[[Tensor], Tensor], minutes: float = 0
    ) -> None:
        self.trace: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._run, self._name, self._decode, self._steps, self._minutes = run, name, decode, steps, minutes
        self._chosen = {round(part * (steps - 1) / (PROGRESS_PICTURES - 1)) for part in range(PROGRESS_PICTURES)}
        self._latest: Progress | None = None
        self._written = time.monotonic()

    def resumed(self, generator: torch.Generator) -> SamplerState | None:
        """Return the state that an earlier process left for this restoration, and continue its trace; None without."""
        progress = sampler_state.read(self._run.root / state_path(self._name), generator) if self._minutes else None
        if progress is None:
            return None
        blank = {**dict.fromkeys(TRACE), "losses": []}  # an earlier version's state has fewer columns
        self.trace, self.seconds = [{**blank, **row} for row in progress.trace], progress.seconds
        LOGGER.info("%s: going on after %d of %d steps", self._name, progress.state.done, self._steps)
        return progress.state

    def __enter__(self) -> "Recorder":
        self.seconds -= time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.seconds += time.perf_counter()
        if kind is None or issubclass(kind, ImageError):
            self._run.write_trace(self._name, self.trace)
        elif issubclass(kind, KeyboardInterrupt | Terminated):
            self._write_state()

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
        """Keep the state after a step, and write it when it is time."""
        self._latest = Progress(state, self.trace[:], self.seconds + time.perf_counter())
        if self._minutes and time.monotonic() >= self._written + 60 * self._minutes:
            self._write_state()

    def _write_state(self) -> None:
        if self._minutes and self._latest is not None:
            self._run.write_state(self._name, self._latest)
            self._written = time.monotonic()


def thinned(losses: Sequence[float], most: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """Return losses with their iterations (from 0): all, or the first, the last and so many evenly between."""
    if len(losses) <= most:
        return list(enumerate(losses))
    chosen = (round(place * (len(losses) - 1) / (most - 1)) for place in range(most))
    return [(iteration, losses[iteration]) for iteration in chosen]
