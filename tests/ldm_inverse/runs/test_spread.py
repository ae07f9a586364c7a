"""The spread of several restorations: against numpy's formulas, and the coverage that Gaussian draws must have."""

import numpy as np
import pytest

from ldm_inverse.runs.spread import coverage, mean_and_deviation
from sample_condition import main
from scripts.evaluate import main as evaluate
from tests.runs import QUICK, pixels, shown, table, words


def test_mean_and_deviation_are_numpys_in_levels():
    pictures = np.random.RandomState(0).randint(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    mean, deviation = mean_and_deviation(list(pictures))
    assert np.array_equal(mean, np.rint(pictures.mean(0)))
    assert np.array_equal(deviation, np.rint(pictures.std(0, ddof=1)))
    assert not mean_and_deviation([pictures[0]] * 3)[1].any()


@pytest.mark.parametrize("count", [4, 8])
def test_draws_of_the_truths_own_distribution_cover_it_in_nine_of_ten_cases(count):
    rng = np.random.RandomState(count)
    mean, deviation = rng.uniform(80, 170, (200, 200, 3)), rng.uniform(5, 20, (200, 200, 3))
    truth, *draws = (np.rint(rng.normal(mean, deviation)) for _ in range(count + 1))
    assert coverage(truth, draws) == pytest.approx(0.9, abs=0.02)
    assert coverage(truth, [np.rint(mean + (draw - mean) / 4) for draw in draws]) < 0.6  # too sure


def test_a_run_of_several_samples_writes_and_shows_their_spread(place, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words(place, out, "--limit", "2", "--n_samples_per_class", "3", "--quiet", *QUICK, steps=2)) == 0
    pictures = [pixels(out / "recon" / f"a_jpg_s{sample}.png") for sample in range(3)]
    for kind, picture in zip(("mean", "std"), mean_and_deviation(pictures), strict=True):
        assert np.array_equal(pixels(out / "spread" / f"a_jpg_{kind}.png"), picture)
    assert sorted(path.name for path in (out / "spread").iterdir()) == [
        *("a_jpg_mean.png", "a_jpg_std.png", "a_png_mean.png", "a_png_std.png")
    ]
    rows = shown((out / "report.html").read_bytes())["rows"]
    assert len({row["pictures"]["spread"] for row in rows}) == 2  # one for each image
    capsys.readouterr()
    assert evaluate([str(out), "--device", "cpu", "--save_dir", str(tmp_path / "tables")]) == 0
    found = {
        (row["image"], row["coverage"])
        for row in table((tmp_path / "tables" / "images.csv").read_text())
        if row["run"] == "run"
    }
    (expected,) = (value for image, value in found if image == "a_jpg")
    truth = pixels(out / "input" / "a_jpg_s0.png")
    assert float(expected) == pytest.approx(coverage(truth, pictures), rel=1e-4)
    assert "coverage" in capsys.readouterr().out


def test_a_single_restoration_has_no_spread(finished):
    assert not (finished / "spread").exists()
