"""A stated protocol with somebody's weights and pictures, beside what papers report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_loader import resolve_device
from scripts.evaluation.finished import FinishedRun
from scripts.evaluation.measuring import Request, measure
from scripts.restoring import INTERRUPTED, restore
from scripts.sweeps.points import find_task
from scripts.verification.fingerprint import FINGERPRINT, fingerprint
from scripts.verification.report import METRICS, report
from util.files import write_whole

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Verification:
    """The protocol. The attributes are the arguments of `scripts/verify.py`.

    Attributes:
        model: words for the command that name the model.
        task: a name in `configs/tasks`, or a file.
        command: more words for `sample_condition.py`.
    """

    model: Sequence[str]
    task: str
    data: Path
    save_dir: Path
    preset: str = "reference"
    steps: int = 500
    images: int = 100
    seed: int = 0
    device: str = "auto"
    command: Sequence[str] = ()

    @property
    def run_folder(self) -> Path:
        """Where the restorations go."""
        return self.save_dir / "run"

    def words(self) -> list[str]:
        """Return the words for `sample_condition.py`."""
        task = find_task(self.task, ROOT / "configs" / "tasks")
        own = {"task_config": task, "preset": self.preset, "data": self.data, "save_dir": self.run_folder}
        own |= {"ddim_steps": self.steps, "limit": self.images, "seed": self.seed, "device": self.device}
        return [*self.model, *(str(part) for key, value in own.items() for part in (f"--{key}", value)), *self.command]

    def run(self) -> int:
        """Restore what is not there yet, measure, print, write the fingerprint; return the exit status."""
        status = restore(self.words())
        if status in INTERRUPTED or not (self.run_folder / "settings.yaml").is_file():
            return status
        run = FinishedRun(self.run_folder)
        evaluation = measure(Request(runs=[self.run_folder], device=str(resolve_device(self.device))))
        entry = next(found for found in evaluation.entries if found.folders)
        print(report(run.record, entry, evaluation.notes))
        quality = {
            found.name: {key: value for key, value in found.values.items() if key in METRICS}
            for found in entry.observations
        }
        content = json.dumps(fingerprint(run, quality), indent=1, ensure_ascii=False)
        write_whole(self.save_dir / FINGERPRINT, f"{content}\n".encode())
        print(f"\nfingerprint, for --compare: {self.save_dir / FINGERPRINT}")
        return status
