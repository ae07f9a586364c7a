"""Tasks by settings, as one table: quality in the cells, what it costs below."""

import re
from collections.abc import Mapping, Sequence
from statistics import median

from ldm_inverse.runs.results import PASSES
from scripts.evaluation.entries import BASELINE, Entry
from scripts.text_tables import markdown_table

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
        counts = {len(entry.images("psnr")) or len(entry.measurements()) for _, entry in entries}
        images = " or ".join(map(str, sorted(counts)))
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
    psnr, ssim = (None, None) if entry is None else (entry.summary("psnr"), entry.summary("ssim"))
    return (None, "") if psnr is None or ssim is None else (psnr.mean, f"{psnr.mean:.2f} / {ssim.mean:.3f}")


def _middle(entries: Mapping[str, Entry], column: str, form: str) -> str:
    """The median over the tasks of a column's mean."""
    known = [summary.mean for entry in entries.values() if (summary := entry.summary(column)) is not None]
    return format(median(known), form) if known else ""


def _short(labels: Sequence[str]) -> list[str]:
    """Return the labels with what differs between them: of a single setting its value, of several their names too."""
    own = [label for label in labels if label != BASELINE]
    parts = [re.split(r"/|,(?=[\w.]+=)", label) for label in own]
    if len(own) < 2 or len({len(found) for found in parts}) > 1:
        return list(labels)
    differ = [place for place, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    shown = {label: ",".join(found[place] for place in differ) for label, found in zip(own, parts, strict=True)}
    if len(differ) == 1:
        shown = {label: text.partition("=")[2] or text for label, text in shown.items()}
    return [shown.get(label, label) for label in labels]
