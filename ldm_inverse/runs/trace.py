"""The files that tell what a sampler did to a restoration."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm_inverse.runs.report.curve import residual_plot
from ldm_inverse.runs.results import PASSES, csv_of

LOSSES = ("first_loss", "last_loss", "target", "noise_floor")
TRACE = ("step", "timestep", "stage", "iterations", *LOSSES, "stop", *PASSES, "seconds")
CURVE = ("step", "stage", "iteration", "loss")


def trace_files(rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return the files' contents by their names: `trace.csv`, the rows' ``losses`` (pairs of an iteration and a loss)
    as `losses.csv`, and drawn as `residual.svg`.

    Args:
        rows: with the columns `TRACE` and ``losses``.
    """
    points = (
        {"step": row["step"], "stage": row["stage"], "iteration": iteration, "loss": loss}
        for row in rows
        for iteration, loss in row["losses"]
    )
    drawn = residual_plot(rows).encode()
    return {"trace.csv": csv_of(TRACE, rows), "losses.csv": csv_of(CURVE, points), "residual.svg": drawn}
