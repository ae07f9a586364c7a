"""The training loop: stages by share of the time, moving average, resumable state, a log of losses."""

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.modules.ema import ExponentialMovingAverage
from util.errors import UserError
from util.files import whole_file

WARMUP_STEPS = 200
LOG_EVERY = 50

Loss = Callable[[dict, np.random.RandomState], Tensor]


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast: minutes of training in all, the peak learning rate, the moving average's decay.

    ``stages`` share the time: each a mapping with `share`, `batch_size` and, for an autoencoder, `crop`.
    """

    max_minutes: float
    learning_rate: float
    ema_decay: float
    stages: list[dict]
    save_minutes: float = 5.0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if not self.stages or abs(sum(s["share"] for s in self.stages) - 1) > 1e-6:
            raise UserError("training.stages: the shares must add up to 1")


def learning_rate(settings: LoopSettings, step: int, progress: float) -> float:
    """Linear warm-up over the first steps, then half a cosine of the share of the time that has passed."""
    rate = settings.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * progress))
    return rate + 1e-6


def stage_at(stages: list[dict], progress: float) -> dict:
    """The stage in force when the share ``progress`` of the time has passed."""
    for stage in stages:
        progress -= stage["share"]
        if progress < 0:
            return stage
    return stages[-1]


class Training:
    """A network in training, its optimiser and average, and their state in ``folder/state.pt``.

    Args:
        network: trained where its parameters ask for a gradient.
        folder: gets ``state.pt`` (whole or not at all), ``log.csv``, and whatever ``report`` writes.
        report: called at each save with the averaged weights in the network; returns columns for the log.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: LoopSettings,
        folder: Path,
        seed: int,
        report: Callable[[], dict[str, float]],
    ):
        self.network, self.settings, self.folder, self.report = network, settings, folder, report
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0)
        self.average = ExponentialMovingAverage(network, settings.ema_decay)
        self.rng = np.random.RandomState(seed)
        self.step, self.seconds = 0, 0.0
        if self.state_file.exists():
            self._resume()

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    def _resume(self) -> None:
        try:
            state = torch.load(self.state_file, weights_only=True, map_location="cpu")
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average.load_state_dict(state["average"])
            name, keys, *rest = state["rng"]
            self.rng.set_state((name, keys.numpy().astype(np.uint32), *rest))
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
        except Exception as error:  # a damaged file, or one of another model, may fail anywhere
            raise UserError(
                f"{self.state_file} is no state of this training: start in another --out, or delete it"
            ) from error

    def save(self) -> None:
        """Write the state beside the old one and put it in its place."""
        name, keys, *rest = self.rng.get_state()
        state = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict(),
            "rng": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
            "step": self.step,
            "seconds": self.seconds,
        }
        with whole_file(self.state_file) as beside:
            torch.save(state, beside)

    def run(self, loss: Loss) -> dict[str, float]:
        """Train until ``max_minutes`` of training have passed, over all runs in this folder together.

        Returns:
            The columns of the last report; it is made also where no time was left to train.

        Args:
            loss: ``loss(stage, rng)`` gives the loss of one batch, a scalar tensor; random numbers come from ``rng``.
        """
        limit = 60 * self.settings.max_minutes
        saved, started, losses = time.monotonic(), time.monotonic() - self.seconds, []
        with tqdm(total=round(limit / 60, 1), initial=round(self.seconds / 60, 1), unit="min", disable=None) as bar:
            while self.seconds < limit:
                losses.append(self._step(loss, self.seconds / limit))
                self.seconds = time.monotonic() - started
                bar.set_postfix(step=self.step, loss=f"{np.mean(losses[-LOG_EVERY:]):.4f}", refresh=False)
                bar.update(self.seconds / 60 - bar.n)
                if time.monotonic() - saved > 60 * self.settings.save_minutes and self.seconds < limit:
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
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bfloat16):
            loss = loss_fn(stage_at(self.settings.stages, progress), self.rng)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.average.update(self.network)
        self.step += 1
        value = loss.item()
        if not np.isfinite(value):
            raise UserError(
                f"the loss became {value} at step {self.step}: lower learning_rate and go on from {self.state_file}"
            )
        return value

    def _save_and_report(self, losses: list[float]) -> dict[str, float]:
        """Save what was trained since the last time, if anything, and report."""
        if losses:
            self.save()
        with self.average.applied(self.network):
            report = self.report()
        if losses:
            self._log(
                {"step": self.step, "minutes": round(self.seconds / 60, 2), "loss": float(np.mean(losses)), **report}
            )
        return report

    def _log(self, columns: dict[str, float]) -> None:
        log, new = self.folder / "log.csv", not (self.folder / "log.csv").exists()
        with log.open("a", newline="") as out:
            writer = csv.DictWriter(out, columns)
            if new:
                writer.writeheader()
            writer.writerow(columns)
        tqdm.write("  ".join(f"{k} {v:.4g}" for k, v in columns.items()))
