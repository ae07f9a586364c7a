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
from typing import TYPE_CHECKING, NamedTuple

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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    """Draw a row of panels for each run, side by side where there are many, and write the picture."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    blocks = -(-len(runs) // MOST_ROWS)
    rows = -(-len(runs) // blocks)
    width, height = (9, 2.35) if blocks == 1 else (6.2, 1.6)
    figure = pyplot.figure(figsize=(width * blocks, height * rows), layout="constrained")
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
    pyplot.close(figure)
    write_whole(path, content.getvalue())


def draw_row(run: Run, index: int, axes: "Sequence[Axes]", title_size: int, text_size: int) -> None:
    """Draw one image of a run, which depends on the row's index, into a row of axes."""
    row = run.metrics[index % len(run.metrics)]
    psnr = ["", "", row["baseline_psnr"], row["psnr"]]
    for axis, panel, value in zip(axes, panels(run, row), psnr, strict=True):
        axis.imshow(panel)
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"{float(value):.1f} dB" if value else "", fontsize=text_size)
    axes[0].set_ylabel(run.title, fontsize=title_size)


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
