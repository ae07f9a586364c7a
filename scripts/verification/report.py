"""A run's means as text, beside what papers report for its task."""

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.evaluation.entries import Entry
from scripts.text_tables import aligned
from scripts.verification.published import Reported, Source, explanations, read_published, reported

# Heading, and digits after the point. What papers call LPIPS has a column of its own: few of them state the backbone.
QUALITY = {"psnr": ("PSNR / dB", 2), "ssim": ("SSIM", 3)}
METRICS = {**QUALITY, "lpips_alex": ("LPIPS alex", 3), "lpips_vgg": ("LPIPS vgg", 3)}
PAPERS = {**QUALITY, "lpips": ("LPIPS", 3)}


def report(record: Mapping[str, Any], entry: Entry, notes: Sequence[str]) -> str:
    """Return a run's conditions and means, the published ones, how these are known, and what may explain differences.

    Args:
        record: the run's `settings.yaml`.
        entry: what was measured on it.
        notes: the settings of the metrics.
    """
    published = read_published()
    rows = reported(published, record["settings"]["measurement"])
    parts = [conditions(record), "\n".join(notes), table(entry, rows)]
    if not rows:
        return "\n\n".join([*parts, "No published figures for this task are known (configs/published_results.yaml)."])
    known = {row.source.source: row.source for row in rows}
    parts.append("* Not checked: nobody could repeat these figures here. How each is known:")
    parts[-1] += "".join(f"\n  {name}: {source.known}" for name, source in known.items())
    parts += [_why(source, record, len(entry.measurements())) for source in known.values()]
    times = ", ".join(f"{time.seconds:g} s ({time.gpu})" for time in published.seconds)
    parts.append(f"Papers report for one picture of 256x256 at S = 500: {times}.")
    return "\n\n".join(parts)


def conditions(record: Mapping[str, Any]) -> str:
    """Return in two lines under which conditions a run was made."""
    settings, run = record["settings"], record["run"]
    measurement = settings["measurement"]
    noise = measurement.get("noise") or {}
    shown = ", ".join(f"{key} {value}" for key, value in noise.items() if key != "name")
    return (
        f"task {run.get('task_config')}: {measurement['operator']['name']}, {noise.get('name', 'no')} noise "
        f"{shown} (images are in [-1, 1])\n"
        f"model {run.get('diffusion_config')}, SHA-256 {str(record['checkpoint'].get('sha256'))[:12]}...; preset "
        f"{run.get('preset')}, S = {settings['ddim_steps']}, seed {run.get('seed')}, {record['device']}"
    )


def table(entry: Entry, rows: Sequence[Reported]) -> str:
    """Return the means here, and those of the papers below."""
    measured = {key: look for key, look in METRICS.items() if entry.summary(key) is not None}
    papers = {key: look for key, look in PAPERS.items() if any(getattr(row.figures, key) is not None for row in rows)}
    columns = {**measured, **papers}
    means = {key: summary.mean for key in measured if (summary := entry.summary(key)) is not None}
    lines = [["", "images", *(head for head, _ in columns.values())], ["here", str(len(entry.measurements()))]]
    lines[1] += [_cell(means.get(key), digits) for key, (_, digits) in columns.items()]
    for source, figures in rows:
        cells = [_cell(getattr(figures, key, None), digits) for key, (_, digits) in columns.items()]
        lines.append([f"{source.source}: {figures.task} *", str(source.images or "?"), *cells])
    return aligned(lines)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _why(source: Source, record: Mapping[str, Any], images: int) -> str:
    lines = explanations(source, record, images)
    return "\n".join([f"What may explain a difference from {source.source}:", *(f"  {line}" for line in lines)])
