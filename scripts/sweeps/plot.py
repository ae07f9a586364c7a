"""Quality against what it costs, a panel for each task."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure  # without pyplot there is no global state and no window
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ldm_inverse.runs.results import PASSES
from scripts.evaluation.entries import Entry
from scripts.evaluation.statistics import Summary

MARKERS = "osD^v"
COSTS: Mapping[str, Callable[[Entry], float | None]] = {
    "seconds for a restoration": lambda entry: _mean(entry.summary("seconds")),
    "passes through the networks": lambda entry: _sum([entry.summary(key) for key in PASSES]),
}


def _mean(summary: Summary | None) -> float | None:
    return None if summary is None else summary.mean


def _sum(summaries: Sequence[Summary | None]) -> float | None:
    known = [summary.mean for summary in summaries if summary is not None]
    return sum(known) if known else None


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (cost, quality) points that none of the others beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((cost, quality))
    return best


def draw(panels: Mapping[str, Sequence[tuple[str, Entry]]], baselines: Mapping[str, Entry]) -> bytes:
    """Draw mean PSNR with its interval against time, and below against passes through the networks.

    Args:
        panels: (label, entry) pairs by task; equal labels look alike in all.
        baselines: by task.

    Returns:
        a PNG file.
    """
    labels = list(dict.fromkeys(label for entries in panels.values() for label, _ in entries))
    size = (4.2 * len(panels) + 0.8, 7.5 + 0.2 * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(COSTS), len(panels), squeeze=False)
    handles: dict[int, Any] = {}
    for column, (task, entries) in enumerate(panels.items()):
        axes[0][column].set_title(task.replace("_", " "))
        for row, (name, cost) in enumerate(COSTS.items()):
            axis = axes[row][column]
            axis.set(xlabel=name, ylabel="PSNR / dB", xscale="log")
            points = {labels.index(label): (cost(entry), entry.summary("psnr")) for label, entry in entries}
            handles |= _draw_points(axis, points)
            baseline = baselines[task].summary("psnr") if task in baselines else None
            if baseline is not None:
                axis.axhline(baseline.mean, color="grey", linestyle=":", linewidth=1)
                place = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "bottom"}
                axis.text(0.99, baseline.mean, "baseline", color="grey", fontsize=8, **place)
    drawn = sorted(handles)
    names = [f"{index + 1}  {labels[index]}" for index in drawn]
    figure.legend([handles[index] for index in drawn], names, loc="outside lower left", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _draw_points(axis: Any, points: Mapping[int, tuple[float | None, Summary | None]]) -> dict[int, Any]:
    """Draw numbered points with their intervals, and the front of those that none beats; returns what was drawn."""
    known = {index: (cost, psnr) for index, (cost, psnr) in points.items() if cost and psnr is not None}
    drawn = {}
    for index, (cost, psnr) in known.items():
        ends = (psnr.low, psnr.high)
        spread = None if None in ends else [[abs(psnr.mean - end)] for end in ends if end is not None]
        look = {"fmt": MARKERS[index // 10 % len(MARKERS)], "color": f"C{index % 10}", "capsize": 3, "markersize": 5}
        drawn[index] = axis.errorbar(cost, psnr.mean, spread, **look)
        axis.annotate(str(index + 1), (cost, psnr.mean), xytext=(5, 4), textcoords="offset points", fontsize=8)
    if known:
        best = front([(cost, psnr.mean) for cost, psnr in known.values()])
        axis.plot(*zip(*best, strict=True), color="grey", linewidth=0.8, zorder=0)
    costs = {cost for cost, _ in known.values()}
    if len(costs) == 1:  # else the axis would have no extent
        axis.set_xlim(min(costs) / 2, min(costs) * 2)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.2, y=0.15)
    axis.grid(alpha=0.3)
    return drawn
