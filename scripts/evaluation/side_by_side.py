"""Finished runs side by side: a table of their means, and a picture with a row of panels for each."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldm_inverse.runs.manifest import picture_folders
from ldm_inverse.runs.measurement_file import read_measurement
from ldm_inverse.runs.results import Results, restoration_name, text_of
from scripts.evaluation.finished import channels_of, read_pixels, recorded_task
from util.errors import UserError
from util.files import write_whole
from util.metrics import to_uint8
from util.yaml import load_yaml

MEANS = ("psnr", "ssim", "baseline_psnr", "baseline_ssim", "seconds")
COLUMNS = ("truth", "measurement", "baseline", "restoration")
MOST_ROWS = 6  # one below the other


class Run(NamedTuple):
    """A finished run: its folder, and the rows of its `metrics.csv`."""

    folder: Path
    metrics: list[dict[str, str]]

    @property
    def title(self) -> str:
        return self.folder.name.replace("_", " ")

    def mean(self, column: str) -> float:
        return float(np.mean([float(row[column]) for row in self.metrics]))


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it is none, or a result is damaged.
    """
    Results(folder / "results").read()  # what is damaged is told, and not passed over
    try:
        table = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
        metrics = [{key: text_of(value or "") for key, value in row.items() if key is not None} for row in table]
    except OSError as error:
        raise UserError(f"{folder} is not a finished run: {error.strerror}: metrics.csv") from error
    if not metrics:
        raise UserError(f"{folder} is not a finished run: metrics.csv is empty (failed.csv may say why)")
    run = Run(folder, metrics)
    try:
        for column in MEANS:
            run.mean(column)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not a finished run: metrics.csv lacks numbers: {error}") from error
    return run


def table(runs: list[Run]) -> str:
    """Return the runs' means beside the baseline's, a line for each."""
    lines = [f"{'':20s} {'PSNR / dB':>20s}   {'SSIM':>20s}   {'seconds':>8s}"]
    lines += [f"{'task':20s} {'baseline':>9s} {'restored':>10s}   {'baseline':>9s} {'restored':>10s}   {'each':>8s}"]
    for run in runs:
        psnr, ssim = ([run.mean(prefix + key) for prefix in ("baseline_", "")] for key in ("psnr", "ssim"))
        lines.append(
            f"{run.title:20s} {psnr[0]:9.2f} {psnr[1]:10.2f}   {ssim[0]:9.3f} {ssim[1]:10.3f}   "
            f"{run.mean('seconds'):8.1f}"
        )
    return "\n".join(lines)


def panels(run: Run, row: dict[str, str]) -> list[np.ndarray]:
    """Return the pictures (H, W, 3) of `COLUMNS` for one row of a run's metrics; the baseline is computed anew."""
    record = load_yaml(run.folder / "settings.yaml")
    try:
        task, samples = recorded_task(record), record["run"].get("n_samples_per_class", 1)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run.folder} is not a finished run: settings.yaml lacks the measurement: {error}") from error
    name, folders = restoration_name(row["image"], row["sample"], samples), picture_folders(record)
    paths = [run.folder / folders[kind] / f"{name}.png" for kind in ("truth", "measurement", "restoration")]
    truth, measured, restored = map(read_pixels, paths)
    image = torch.zeros(1, channels_of(paths[0]), *truth.shape[:2])
    measurement = task.accept(read_measurement(run.folder / "label", row["image"], task.settings), image)
    baseline = to_uint8(task.baseline(measurement, image.shape))
    return [truth, measured, np.broadcast_to(baseline, truth.shape), restored]


def draw(runs: list[Run], path: Path) -> None:
    """Draw a row of panels for each run, side by side where there are many, and write the picture."""
    blocks = -(-len(runs) // MOST_ROWS)
    rows = -(-len(runs) // blocks)
    width, height = (9, 2.35) if blocks == 1 else (6.2, 1.6)
    figure = Figure(figsize=(width * blocks, height * rows), layout="constrained")
    for block, part in enumerate(figure.subfigures(1, blocks, squeeze=False)[0]):
        axes = part.subplots(rows, len(COLUMNS), squeeze=False)
        for axis, column in zip(axes[0], COLUMNS, strict=True):
            axis.set_title(column, fontsize=14 if blocks == 1 else 11)
        for row, row_of_axes in enumerate(axes):
            index = block * rows + row
            if index < len(runs):
                draw_row(runs[index], index, row_of_axes, *((13, 11) if blocks == 1 else (10, 9)))
            else:
                for axis in row_of_axes:
                    axis.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120 if blocks == 1 else 84, pil_kwargs={"optimize": True})
    write_whole(path, content.getvalue())


def draw_row(run: Run, index: int, axes: Sequence[Axes], title_size: int, text_size: int) -> None:
    """Draw one image of a run, which depends on the row's index, into a row of axes."""
    row = run.metrics[index % len(run.metrics)]
    psnr = ["", "", row["baseline_psnr"], row["psnr"]]
    for axis, panel, value in zip(axes, panels(run, row), psnr, strict=True):
        axis.imshow(panel)
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"{float(value):.1f} dB" if value else "", fontsize=text_size)
    axes[0].set_ylabel(run.title, fontsize=title_size)
