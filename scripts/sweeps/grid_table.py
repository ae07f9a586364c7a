"""Tasks by settings, as one table: quality in the cells, what it costs below."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from statistics import median

from scripts.benchmarks.report import markdown_table
from scripts.evaluation.entries import BASELINE, Entry
from util.results import PASSES

NETWORKS = tuple(zip(PASSES[::2], PASSES[1::2], ("UNet", "decoder", "encoder"), strict=True))
CAPTION = (
    "PSNR in dB / SSIM, means over the images; of each task the best PSNR is bold. Seconds and passes (forward +\n"
    "backward) are those of one restoration, the median over the tasks."
)


def grid_table(panels: Mapping[str, Sequence[tuple[str, Entry]]], baselines: Mapping[str, Entry]) -> str:
    """Return a Markdown table with a line for each task and a column for each of the settings; below, what they cost.

    Args:
        panels: (label of the settings, entry) pairs by task.
        baselines: by task.
    """
    labels = list(dict.fromkeys(label for entries in panels.values() for label, _ in entries))
    found = {
        label: {task: dict(entries)[label] for task, entries in panels.items() if label in dict(entries)}
        for label in labels
    }
    columns = {**({BASELINE: baselines} if baselines else {}), **found}
    body = []
    for task, entries in panels.items():
        cells = [_quality(column.get(task)) for column in columns.values()]
        best = max((psnr for psnr, _ in cells if psnr is not None), default=None)
        # Columns that are not over as many images are no fair comparison, which is to be seen.
        images = " or ".join(str(count) for count in sorted({len(entry.measurements()) for _, entry in entries}))
        body.append(
            [task.replace("_", " "), images, *(f"**{text}**" if psnr == best else text for psnr, text in cells)]
        )
    body.append(["seconds", "", *(_middle(column, "seconds", ".1f") for column in columns.values())])
    for forward, backward, name in NETWORKS:
        pairs = [(_middle(column, forward, ".0f"), _middle(column, backward, ".0f")) for column in columns.values()]
        body.append([f"{name} passes", "", *(" + ".join(filter(None, pair)) for pair in pairs)])
    return markdown_table(["task", "images", *_short(list(columns))], body) + "\n" + CAPTION + "\n"


def _quality(entry: Entry | None) -> tuple[float | None, str]:
    """Mean PSNR, and the cell; None where there is no truth."""
    psnr, ssim = (entry and entry.summary(key) for key in ("psnr", "ssim"))
    return (None, "") if psnr is None else (psnr.mean, f"{psnr.mean:.2f} / {ssim.mean:.3f}")


def _middle(entries: Mapping[str, Entry], column: str, form: str) -> str:
    """The median over the tasks of a column's mean."""
    known = [summary.mean for entry in entries.values() if (summary := entry.summary(column)) is not None]
    return format(median(known), form) if known else ""


def _short(labels: Sequence[str]) -> list[str]:
    """The labels without the parts, up to a / = or comma, with which all settings begin."""
    own = [re.split(r"(?<=[/=,])", label) for label in labels if label != BASELINE]
    shared = list(takewhile(lambda parts: len(own) > 1 and len(set(parts)) == 1, zip(*own, strict=False)))
    cut = sum(len(parts[0]) for parts in shared)
    return [label if label == BASELINE else label[cut:] for label in labels]
