"""The drawing of the residual: where curves and levels lie, and what is said of them."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest

from ldm_inverse.runs.recorder import thinned
from ldm_inverse.runs.report.curve import residual_plot

SVG = "{http://www.w3.org/2000/svg}"


def row(stage, losses, target=None, floor=None, stop="", step=0):
    points = list(enumerate(losses))
    iterations = 0 if stage == "soft" else len(losses)
    about = {"step": step, "iterations": iterations, "target": target, "noise_floor": floor, "stop": stop}
    return {"stage": stage, "losses": points, **about}


def drawn(*rows):
    return ElementTree.fromstring(residual_plot(rows))


def corners(root, kind):
    """The corners (x, y) of each line of a kind, which may consist of several parts."""
    groups = [group for group in root.iter(f"{SVG}g") if group.get("id") == kind]
    lines = [path.get("d") or "" for group in groups for path in group.iter(f"{SVG}path") if path.get("clip-path")]
    parts = [part.split("L ") for line in lines for part in line.replace("\n", "").split("M ")[1:]]
    return [[tuple(map(float, corner.split())) for corner in part] for part in parts]


def dots(root, kind):
    groups = [group for group in root.iter(f"{SVG}g") if group.get("id") == kind]
    return [(float(dot.get("x")), float(dot.get("y"))) for group in groups for dot in group.iter(f"{SVG}use")]


def words(root):
    return [text.text for text in root.iter(f"{SVG}text")]


def test_levels_are_on_one_logarithmic_axis_with_the_curves():
    root = drawn(row("pixel", [1, 0.1, 0.01, 0.0001], target=1e-4, floor=0.01))
    ((_, one), (_, tenth), (_, hundredth), (_, least)) = corners(root, "pixel")[0]
    assert tenth - one == pytest.approx(hundredth - tenth, abs=0.1)
    assert least - hundredth == pytest.approx(2 * (hundredth - tenth), abs=0.1)
    assert [y for _, y in corners(root, "floor")[0]] == pytest.approx([hundredth] * 2, abs=0.01)
    assert [y for _, y in corners(root, "target")[0]] == pytest.approx([least] * 2, abs=0.01)
    assert {"0.01", "0.0001", "pixel", "noise floor 0.01"} <= {*words(root)}


def test_optimisations_follow_one_another_and_soft_steps_are_joined():
    rows = [row("soft", [0.5]), row("pixel", [0.4, 0.3, 0.2]), row("soft", [0.25]), row("pixel", [0.2])]
    root = drawn(*rows, row("latent", [0.3, 0.1]))
    (soft,), (pixel, dot), (latent,) = (corners(root, stage) for stage in ("soft", "pixel", "latent"))
    step = pixel[1][0] - pixel[0][0]
    assert [(x - soft[0][0]) / step for x, _ in (*soft, *pixel, *dot, *latent)] == pytest.approx(
        [0, 4, 1, 2, 3, 5, 6, 7], abs=0.01
    )
    assert not corners(root, "floor")
    assert dots(root, "pixel") == dot


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("soft", [0.1])],
        [row("pixel", [0.0, 0.0], target=None, floor=0.0)],
        [row("pixel", [float("nan"), float("inf")])],
        [row("pixel", [0.0119, 0.012], floor=0.0119)],
        [row("<script>alert(1)</script>", [0.1, 0.2], stop="<b>&")],
    ],
)
def test_any_trace_is_drawn_twice_alike_as_well_formed_text(rows):
    root = drawn(*rows)
    assert not any("script" in element.tag or "alert" in str(element.attrib) for element in root.iter())
    places = [number for stage in ("soft", "pixel", "other") for part in corners(root, stage) for number in part]
    assert np.isfinite(places).all()
    assert residual_plot(rows) == residual_plot(rows)


def test_nothing_of_the_drawing_lies_outside_it():
    svg = residual_plot([row("pixel", [1.0, 1e-6], floor=1e-6)])
    assert "http" not in svg.replace("http://www.w3.org/", "")


def test_long_optimisations_are_thinned_between_the_first_and_the_last_loss():
    assert thinned([3.0, 2.0]) == [(0, 3.0), (1, 2.0)]
    points = thinned([float(-number) for number in range(2000)])
    assert len(points) == 200
    assert points[0] == (0, 0.0)
    assert points[-1] == (1999, -1999.0)
    gaps = [after[0] - before[0] for before, after in pairwise(points)]
    assert max(gaps) - min(gaps) <= 1
