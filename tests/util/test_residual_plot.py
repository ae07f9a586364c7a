"""The drawing of the residual: where curves and levels lie, and what is said of them."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from util.recorder import thinned
from util.residual_plot import residual_plot

SVG = "{http://www.w3.org/2000/svg}"


def row(stage, losses, target=None, floor=None, stop="", step=0):
    points = list(enumerate(losses))
    iterations = 0 if stage == "soft" else len(losses)
    about = {"step": step, "iterations": iterations, "target": target, "noise_floor": floor, "stop": stop}
    return {"stage": stage, "losses": points, **about}


def drawn(*rows):
    return ElementTree.fromstring(residual_plot(rows))


def curves(root, stage):
    """The corners of each curve of a stage."""
    groups = (group for group in root.iter(f"{SVG}g") if group.get("class") == stage)
    return [[tuple(map(float, corner.split(","))) for corner in group[1].get("points").split()] for group in groups]


def levels(root, kind):
    return [float(line.get("y1")) for line in root.iter(f"{SVG}line") if kind in line.get("class").split()]


def test_levels_are_on_one_logarithmic_axis_with_the_curves():
    root = drawn(row("pixel", [1, 0.1, 0.01, 0.0001], target=1e-4, floor=0.01))
    ((_, one), (_, tenth), (_, hundredth), (_, least)) = curves(root, "pixel")[0]
    assert tenth - one == pytest.approx(hundredth - tenth, abs=0.2)
    assert least - hundredth == pytest.approx(2 * (hundredth - tenth), abs=0.2)
    floor, legend = levels(root, "floor")
    assert floor == pytest.approx(hundredth, abs=0.1)
    assert legend < one
    assert levels(root, "pixel")[0] == pytest.approx(least, abs=0.1)  # the target


def test_optimisations_follow_one_another_and_say_what_they_did():
    root = drawn(
        row("soft", [0.5]), row("pixel", [0.4, 0.3, 0.2], step=7), row("latent", [0.3, 0.1], stop="plateau", step=9)
    )
    (pixel,), (latent,) = curves(root, "pixel"), curves(root, "latent")
    assert pixel[-1][0] < latent[0][0]
    assert pixel[1][0] - pixel[0][0] == pytest.approx(latent[1][0] - latent[0][0], abs=0.2)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert "step 7, pixel: 3 iterations, 0.4 to 0.2" in titles
    assert "step 9, latent: 2 iterations, 0.3 to 0.1, stopped by plateau" in titles
    assert not levels(root, "floor")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("soft", [0.1])],
        [row("pixel", [0.0, 0.0], target=None, floor=0.0)],
        [row("pixel", [float("nan"), float("inf")])],
        [row("<script>alert(1)</script>", [0.1, 0.2], stop="<b>&")],
    ],
)
def test_any_trace_is_drawn_as_well_formed_text(rows):
    root = drawn(*rows)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "style", "g", "polyline", "circle", "line", "text")
    }
    places = " ".join(element.get(name, "") for element in root.iter() for name in ("points", "y1", "cy", "y"))
    assert not any(word in places for word in ("nan", "inf"))


def test_long_optimisations_are_thinned_between_the_first_and_the_last_loss():
    assert thinned([3.0, 2.0]) == [(0, 3.0), (1, 2.0)]
    points = thinned([float(-number) for number in range(2000)])
    assert len(points) == 200
    assert points[0] == (0, 0.0)
    assert points[-1] == (1999, -1999.0)
    gaps = [after[0] - before[0] for before, after in pairwise(points)]
    assert max(gaps) - min(gaps) <= 1
