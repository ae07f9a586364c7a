#!/usr/bin/env python3
"""Show finished runs side by side: a table of their means, and a picture with a row for each.

    python scripts/overview.py results/demo/inpainting results/demo/motion_deblur --save results/demo/overview.png

A row shows truth, measurement, baseline and restoration of one image, another one in each row.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_inverse.task import Task
from scripts.evaluation.finished import read_pixels
from util.cli import Parser, add_debug, exit_status
from util.errors import UserError
from util.files import write_whole
from util.measurement_file import read_measurement
from util.metrics import to_uint8
from util.yaml_files import load_yaml

MEANS = ("psnr", "ssim", "baseline_psnr", "baseline_ssim", "seconds")
COLUMNS = ("truth", "measurement", "baseline", "restoration")


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
        UserError: it is none.
    """
    try:
        metrics = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    except OSError as error:
        raise UserError(f"{folder} is no finished run: {error.strerror}: metrics.csv") from error
    if not metrics:
        raise UserError(f"{folder} is no finished run: metrics.csv is empty (failed.csv may say why)")
    run = Run(folder, metrics)
    try:
        for column in MEANS:
            run.mean(column)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is no finished run: metrics.csv lacks numbers: {error}") from error
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
    several = any(other["sample"] != "0" for other in run.metrics)
    name = f"{row['image']}_s{row['sample']}" if several else row["image"]
    truth, measured, restored = (read_pixels(run.folder / kind / f"{name}.png") for kind in ("label", "input", "recon"))
    try:
        task = Task(**load_yaml(run.folder / "settings.yaml")["settings"]["measurement"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.folder} is no finished run: settings.yaml lacks the measurement: {error}") from error
    image = torch.zeros(1, 3, *truth.shape[:2])
    measurement = task.accept(read_measurement(run.folder / "label", row["image"], task.settings), image)
    return [truth, measured, to_uint8(task.baseline(measurement, image.shape)), restored]


def draw(runs: list[Run], path: Path) -> None:
    """Draw a row of panels for each run, and write the picture."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(runs), len(COLUMNS), figsize=(9, 2.35 * len(runs)), squeeze=False, layout="constrained"
    )
    for axis, column in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(column, fontsize=14)
    for index, (run, row_of_axes) in enumerate(zip(runs, axes, strict=True)):
        row = run.metrics[index % len(run.metrics)]
        psnr = ["", "", row["baseline_psnr"], row["psnr"]]
        for axis, panel, value in zip(row_of_axes, panels(run, row), psnr, strict=True):
            axis.imshow(panel, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"{float(value):.1f} dB" if value else "", fontsize=11)
        row_of_axes[0].set_ylabel(run.title, fontsize=13)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    write_whole(path, content.getvalue())


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders that sample_condition.py has written"
    )
    parser.add_argument("--save", type=Path, required=True, metavar="PNG", help="where the picture goes")
    add_debug(parser)
    return parser.parse_args(argv)


def show(args: argparse.Namespace) -> None:
    """Draw the picture and print the table."""
    runs = [read_run(folder) for folder in args.runs]
    draw(runs, args.save)
    print(table(runs))
    print(f"\npicture: {args.save}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(show, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
