"""The degraded pictures that come with the project are what their README says of the originals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.dataloader import to_tensor
from data.pictures import read_pixels
from ldm_inverse.measurements import get_operator

DATA = Path(__file__).resolve().parents[2] / "data"
OWN = DATA / "own"
ROUNDING = 2 / 255 / 12**0.5  # of 8 bits in [-1, 1]

OPERATORS = {
    "blurred.png": ("900006", {"name": "motion_blur", "kernel": str(OWN / "kernel.npy")}, 0.01),
    "small.png": ("900009", {"name": "super_resolution", "scale_factor": 4, "in_shape": [1, 3, 128, 128]}, 0.01),
    "compressed.jpg": ("900012", {"name": "jpeg", "quality": 10, "subsampling": 420}, 0.0),
    "noisy.png": ("900015", {"name": "noise"}, 0.2),
}


def read(path):
    return to_tensor(read_pixels(path))[None]


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_explains_the_picture_to_the_noise(name):
    truth, settings, sigma = OPERATORS[name]
    image, y = read(DATA / "demo" / f"{truth}.png"), read(OWN / name)
    with torch.no_grad():
        expected = get_operator(**settings)(image)
    inside = y.abs() < 1  # noise beyond the range is cut
    residual = float((y - expected)[inside].square().mean().sqrt())
    expected = (sigma**2 + ROUNDING**2) ** 0.5
    if sigma:
        assert residual == pytest.approx(expected, rel=0.1)
    else:
        assert residual < 0.03, "decoders of JPEG differ in how they interpolate chroma"


def test_the_mask_is_white_where_the_scratched_picture_is_good():
    kept = np.asarray(read_pixels(OWN / "mask.png"))[..., 0] == 255
    truth, scratched = read_pixels(DATA / "demo" / "900003.png"), read_pixels(OWN / "scratched.png")
    assert np.array_equal(truth[kept], scratched[kept])
    assert (scratched[~kept] == [255, 0, 255]).all()
    assert 0.85 < kept.mean() < 0.98


def test_they_are_small_and_each_is_described():
    readme = (OWN / "README.md").read_text()
    files = [path for path in OWN.iterdir() if path.name != "README.md"]
    assert all(f"`{path.name}`" in readme for path in files)
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert "CC0" in readme
