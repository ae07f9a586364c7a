"""The residual of a restoration over its iterations, drawn by matplotlib as an SVG."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that can be read on a light and on a dark page.
STAGES = {"soft": "#8a8f98", "pixel": "#3f86dd", "latent": "#e8622c", "final": "#1f9d6b", "refine": "#a855c7"}
OTHER, FLOOR, INK = "#8a8f98", "#d6304a", "#7f868f"
SIZE = (7.6, 2.8)  # inches, of 72 points each
SMALLEST = 1e-12  # a logarithmic axis has no zero
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "residual",  # equal traces give equal files
    "font.size": 9,
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def residual_plot(trace: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean squared residual over the iterations of all optimisations, one after the other, as an SVG.

    A dashed line is the noise's floor; a dotted line is the loss below which an optimisation stops. Losses that are
    not finite leave a gap.

    Args:
        trace: rows with the columns `TRACE` and ``losses``, pairs of an iteration and its loss.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot there is no global state and no window

    with rc_context(LOOK):
        figure = Figure(figsize=SIZE)
        axes = figure.add_axes((0.085, 0.16, 0.905, 0.68))
        axes.set(yscale="log", xlabel="iterations of all optimisations")
        axes.set_title("mean squared residual", loc="left", fontsize=9, y=1.1)
        _draw(axes, [row for row in trace if row["losses"]])
        content = io.StringIO()
        about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=about)
    return content.getvalue()


def _draw(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw a curve for each stage, the targets, the floor, the grid and the legend."""
    starts = np.cumsum([0, *(_length(row) for row in rows)])
    floor = next((row["noise_floor"] for row in rows if row["noise_floor"]), None)
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [(start, row) for start, row in zip(starts, rows, strict=False) if row["stage"] == stage]
        colour, known = STAGES.get(stage, OTHER), stage in STAGES
        x, y, alone = _curve(own, joined=stage == "soft")
        name = {"gid": stage, "label": stage} if known else {"gid": "other", "label": "other"}
        axes.plot(x, y, color=colour, linewidth=1.3, marker=".", markevery=alone, **name)
        for start, row in own:
            if row["target"] and row["target"] != floor:
                axes.plot((start, start + _length(row)), (row["target"],) * 2, ":", color=colour, gid="target")
    if floor:
        axes.axhline(floor, color=FLOOR, linestyle="--", linewidth=1.3, label=f"noise floor {floor:.2g}", gid="floor")
    axes.margins(x=0.01)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    _set_ticks(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=7, frameon=False, borderpad=0, handlelength=1.5)


def _set_ticks(axes: "Axes") -> None:
    """Label decades, or where there are few of them parts of a decade. Few ticks: each takes a millisecond to draw."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

    low, high = axes.get_ylim()
    wide = LogLocator(subs=(1,) if high > 1000 * low else (1, 2, 5), numticks=9)
    axes.yaxis.set_major_locator(wide if high > 8 * low else AutoLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.4g}")


def _length(row: Mapping[str, Any]) -> int:
    return max(row["iterations"], 1)


def _curve(events: Sequence[tuple[int, Mapping[str, Any]]], joined: bool) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return a stage's iterations, its losses, and which of these stand alone and are drawn as dots.

    A NaN between two optimisations keeps them apart, unless they are ``joined``.
    """
    gap = [] if joined else [(math.nan, math.nan)]
    points = [point for start, row in events for point in (*((start + i, loss) for i, loss in row["losses"]), *gap)]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    y = np.where(np.isfinite(y), y.clip(SMALLEST), math.nan)
    there = np.pad(np.isfinite(y), 1)
    return x, y, np.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:]).tolist()
