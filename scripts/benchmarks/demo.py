"""Whole restorations by given presets: time and quality side by side."""

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts import restoring
from scripts.text_tables import markdown_table
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("seconds", "psnr", "ssim", "baseline_psnr", "baseline_ssim")


def restore(preset: str, task: Path, folder: Path, words: Sequence[str]) -> dict[str, float]:
    """Restore pictures with the demo model in a process of its own; returns the means of `COLUMNS`.

    Args:
        preset: name or file.
        task: the task file.
        folder: where the run's files go; those of an earlier run are deleted, as it would not be run again.
        words: further words for the command.

    Raises:
        UserError: the command failed.
    """
    model = ["--ldm_config", ROOT / "configs/latent-diffusion/demo-ldm-vq-4.yaml"]
    model += ["--diffusion_config", ROOT / "models/demo/model.safetensors", "--data", ROOT / "data/demo"]
    command = ["--task_config", task, "--preset", preset, *model, "--save_dir", folder, "--quiet", *words]
    shutil.rmtree(folder, ignore_errors=True)
    if restoring.restore([*map(str, command)]):
        raise UserError(f"the restoration of {task.stem} by preset {preset} failed: see above")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {column: sum(float(row[column]) for row in rows) / len(rows) for column in COLUMNS}


def demo_table(presets: Iterable[str], tasks: Iterable[Path], folder: Path, words: Sequence[str]) -> list[dict]:
    """Return the means of every preset on every task, task by task."""
    presets = list(presets)
    return [
        {
            "task": task.stem,
            "preset": preset,
            **restore(preset, task, folder / Path(preset).stem / task.stem, words),
        }
        for task in tasks
        for preset in presets
    ]


def demo_markdown(table: Sequence[dict]) -> str:
    """Return the table of `demo_table` in Markdown."""
    head = ["task", "preset", "s each", "PSNR / dB", "SSIM", "baseline PSNR", "baseline SSIM"]
    formats = (".2f", ".2f", ".3f", ".2f", ".3f")
    body = [
        [row["task"], row["preset"], *(format(row[key], spec) for key, spec in zip(COLUMNS, formats, strict=True))]
        for row in table
    ]
    return markdown_table(head, body)
