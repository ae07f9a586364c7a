"""The training loop: stages, moving averages, resumable state, a log of losses."""

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.training.average import PowerAverage
from ldm.training.settings import Stage, TrainingSettings
from util.errors import UserError
from util.files import whole_file
from util.processes import heed_interruption

WARMUP_STEPS = 200
LOG_EVERY = 50

Loss = Callable[[Stage, np.random.RandomState], Tensor]


@runtime_checkable
class Counting(Protocol):
    """A loss that keeps something from one step to the next."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` takes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class Budget:
    """How long a training lasts in all: until so many ``steps`` are done, or else so many ``minutes`` have passed.

    Only a training by steps comes out the same each time.
    """

    minutes: float = math.inf
    steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """The share of it that is used up; 1 or more ends the training."""
        used, whole = (seconds / 60, self.minutes) if self.steps is None else (step, self.steps)
        return used / whole if whole else 1.0


def learning_rate(settings: TrainingSettings, step: int, progress: float) -> float:
    """Linear warm-up over the first steps, then what ``settings.flat_steps`` says."""
    if settings.flat_steps is None:
        fall = 0.5 + 0.5 * math.cos(math.pi * progress)
    else:
        fall = max(1.0, step / settings.flat_steps) ** -0.5
    return settings.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * fall + 1e-6


def stage_at(stages: Sequence[Stage], progress: float) -> Stage:
    """The stage in force when the share ``progress`` of the training is done."""
    for stage in stages:
        progress -= float(stage.share)
        if progress < 0:
            return stage
    return stages[-1]


class Training:
    """A network in training, its optimiser and averages, and their state in ``folder/state.pt``.

    Args:
        network: trained where its parameters ask for a gradient.
        folder: gets ``state.pt`` (whole or not at all), ``log.csv``, and whatever ``report`` writes.
        report: called at each save, once for each width in ``settings.averages`` with that average in the network;
            returns columns for the log.
        save_minutes: how often the state is saved.
        bfloat16: compute in bfloat16 where torch's autocast does.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: TrainingSettings,
        budget: Budget,
        folder: Path,
        seed: int,
        report: Callable[[float], dict[str, float]],
        save_minutes: float = 5.0,
        bfloat16: bool = False,
    ):
        self.network, self.settings, self.budget = network, settings, budget
        self.folder, self.report = folder, report
        self.save_minutes, self.bfloat16 = save_minutes, bfloat16
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0, fused=True
        )
        self.averages = {width: PowerAverage(network, width) for width in settings.averages}
        self.rng = np.random.RandomState(seed)
        self.step, self.seconds = 0, 0.0
        self._loss: Loss | None = None
        self._loss_state: Mapping[str, Any] | None = None  # of an earlier run, for a loss that has one
        if self.state_file.exists():
            self._resume()

    @property
    def state_file(self) -> Path:
        """Where the state lies."""
        return self.folder / "state.pt"

    def label(self, name: str, width: float) -> str:
        """``name`` for the average of a width: with the width in it where there are several."""
        return name if len(self.averages) == 1 else f"{name}-{width:g}"

    def _resume(self) -> None:
        try:
            state = torch.load(self.state_file, weights_only=True, map_location="cpu")
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            for width, average in self.averages.items():
                average.load_state_dict(state["averages"][width])
            name, keys, *rest = state["rng"]
            self.rng.set_state((name, keys.numpy().astype(np.uint32), *rest))
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self._loss_state = state.get("loss")
        except Exception as error:  # a damaged file, or one of another model, may fail anywhere
            raise UserError(
                f"{self.state_file} is not a state of this training: give another --out, or delete it"
            ) from error

    def save(self) -> None:
        """Write the state beside the old one and put it in its place."""
        stream = self.rng.get_state(legacy=False)
        keys = torch.from_numpy(stream["state"]["key"].astype(np.int64))
        state = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averages": {width: average.state_dict() for width, average in self.averages.items()},
            "rng": ("MT19937", keys, stream["state"]["pos"], stream["has_gauss"], stream["gauss"]),
            "step": self.step,
            "seconds": self.seconds,
        }
        if isinstance(self._loss, Counting):
            state["loss"] = self._loss.state_dict()
        with whole_file(self.state_file) as beside:
            torch.save(state, beside)

    def run(self, loss: Loss) -> dict[str, float]:
        """Train until the budget is used up, over all runs in this folder together.

        Returns:
            The columns of the last report; it is made also where nothing was left to train.

        Args:
            loss: ``loss(stage, rng)`` gives the loss of one batch, a scalar tensor; random numbers come from ``rng``.
        """
        self._loss = loss
        if isinstance(loss, Counting) and self._loss_state is not None:
            loss.load_state_dict(self._loss_state)
        saved, started = time.monotonic(), time.monotonic() - self.seconds
        losses: list[float] = []
        progress = self.budget.progress(self.step, self.seconds)
        with tqdm(total=100, initial=round(100 * progress, 1), unit="%", disable=None) as bar:
            while progress < 1:
                heed_interruption()
                losses.append(self._step(loss, progress))
                self.seconds = time.monotonic() - started
                progress = self.budget.progress(self.step, self.seconds)
                bar.set_postfix(step=self.step, loss=f"{np.mean(losses[-LOG_EVERY:]):.4f}", refresh=False)
                bar.update(round(100 * progress, 1) - bar.n)
                if time.monotonic() - saved > 60 * self.save_minutes and progress < 1:
                    self._save_and_report(losses)
                    # What saving and looking cost is not training time.
                    started = time.monotonic() - self.seconds
                    saved, losses = time.monotonic(), []
        return self._save_and_report(losses)

    def _step(self, loss_fn: Loss, progress: float) -> float:
        rate = learning_rate(self.settings, self.step, progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        device = self.trained[0].device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = loss_fn(stage_at(self.settings.stages, progress), self.rng)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        for average in self.averages.values():
            average.update(self.network)
        self.step += 1
        value = loss.item()
        if not np.isfinite(value):
            raise UserError(
                f"the loss became {value} at step {self.step}: lower learning_rate and continue from {self.state_file}"
            )
        return value

    def _save_and_report(self, losses: list[float]) -> dict[str, float]:
        """Save what was trained since the last time, if anything, and report."""
        if losses:
            self.save()
        columns: dict[str, float] = {}
        for width, average in self.averages.items():
            # A compiled network would be compiled again for the report's few passes.
            with average.applied(self.network), torch.compiler.set_stance("force_eager"):
                columns |= {self.label(name, width): value for name, value in self.report(width).items()}
        if losses:
            self._log(
                {"step": self.step, "minutes": round(self.seconds / 60, 2), "loss": float(np.mean(losses)), **columns}
            )
        return columns

    def _log(self, columns: dict[str, float]) -> None:
        log, new = self.folder / "log.csv", not (self.folder / "log.csv").exists()
        with log.open("a", newline="") as out:
            writer = csv.DictWriter(out, columns)
            if new:
                writer.writeheader()
            writer.writerow(columns)
        tqdm.write("  ".join(f"{k} {v:.4g}" for k, v in columns.items()))
