"""A bar on stderr that follows a restoration."""

import time
from collections.abc import Sequence

from tqdm import tqdm

from ldm.acceleration.memory import peak_memory_text
from ldm_inverse.solvers.observer import Event, Finished, Iterated, StageEnded, Started, StepEnded

# tqdm's own without the rate: what is beside it should fit a terminal.
BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
BAR_SECONDS = 0.5  # between two words on an optimisation that goes on


class ProgressBar:
    """An observer that shows the steps, and beside them the loss of the current optimisation."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)
        self._shown = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Started():
                self._bar = tqdm(
                    total=event.steps, desc="sampling", bar_format=BAR_FORMAT, leave=None, dynamic_ncols=True
                )
            case Iterated() if time.monotonic() - self._shown >= BAR_SECONDS:
                self._say(f"{event.stage} {event.iteration}/{event.limit}", event.losses, event.target)
            case StageEnded() if event.sample == 0 and event.last_loss is not None:
                self._say(event.stage, [event.last_loss], event.target, refresh=event.stage != "soft")
            case StepEnded():
                self._bar.update()
            case Finished():
                self._bar.close()

    def _say(self, stage: str, losses: Sequence[float], target: float | None, refresh: bool = True) -> None:
        self._shown = time.monotonic()
        aim = "" if target is None else f", target {target:.1e}"
        loss = sum(losses) / len(losses)
        self._bar.set_postfix_str(f"{stage}, loss {loss:.1e}{aim}, {peak_memory_text()}", refresh=refresh)
