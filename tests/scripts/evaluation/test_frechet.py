"""The Fréchet distance of restorations, over features of the first stage in what a mask dropped."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from data.picture_array import load_pictures
from model_loader import get_model
from scripts.evaluation.frechet import FeatureDistance
from tests.runs import pixels, table
from util.errors import UserError

POOLING = SimpleNamespace(resolution=32, device=torch.device("cpu"), encode_mode=lambda x: F.avg_pool2d(x, 4))


def some_pictures(count=40, seed=0):
    """Pictures (count, 32, 32, 3), and a hole of two by two cells at a random place of each."""
    rng = np.random.RandomState(seed)
    pictures, dropped = rng.randint(40, 200, (count, 32, 32, 3)).astype(np.uint8), np.zeros((count, 32, 32), bool)
    pictures += rng.randint(0, 30, (count, 1, 1, 1)).astype(np.uint8)
    for hole in dropped:
        top, left = rng.randint(0, 7, 2) * 4
        hole[top : top + 8, left : left + 8] = True
    return pictures, dropped


def test_the_distance_of_a_brighter_hole_is_its_closed_form():
    pictures, dropped = some_pictures()
    distance = FeatureDistance(POOLING, pictures)
    assert distance(pictures, dropped) == pytest.approx(0, abs=1e-6)
    latents = F.avg_pool2d(torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 127.5 - 1, 4).numpy()
    holes = dropped[:, ::4, ::4]
    means = np.stack([latent[:, hole].mean(1) for latent, hole in zip(latents, holes, strict=True)])
    # A constant moves the means of the channels and leaves all deviations and covariances.
    want = np.square(5 / 127.5 / means.std(0)).sum()
    brighter = np.where(dropped[..., None], pictures + 5, pictures).astype(np.uint8)
    assert distance(brighter, dropped) == pytest.approx(want, rel=1e-3)


def test_what_was_measured_does_not_count():
    pictures, dropped = some_pictures()
    other, _ = some_pictures(seed=1)
    distance = FeatureDistance(POOLING, pictures)
    assert distance(np.where(dropped[..., None], pictures, other), dropped) == pytest.approx(0, abs=1e-6)
    assert distance(np.where(dropped[..., None], other, pictures), dropped) > 0.1


def test_of_scattered_pixels_the_whole_picture_counts():
    pictures, dropped = some_pictures()
    other, _ = some_pictures(seed=1)
    distance = FeatureDistance(POOLING, pictures)
    scattered = np.random.RandomState(0).uniform(size=dropped.shape) < 0.5
    assert distance(other, scattered) == distance(other, np.ones_like(dropped))


def test_the_command_prints_it_for_each_run(runs, evaluate):
    folder, model = runs / "inpainting" / "one", runs / "tiny.safetensors"
    printed, files = evaluate(folder, "--frechet", runs / "pictures", "--model", model)
    (row,) = (row for row in table(files["summary.csv"]) if (row["run"], row["metric"]) == ("one", "frechet"))
    reference = load_pictures([runs / "pictures"], 32, folder.parent / "reference.u8")
    distance = FeatureDistance(get_model(None, model, "cpu"), reference)
    names = ("a", "b b", "c")
    restored = np.stack([pixels(folder / "recon" / f"{name}.png") for name in names])
    masks = [load_file(folder / "label" / f"{name}.safetensors")["mask"][0, 0].numpy() for name in names]
    assert float(row["mean"]) == pytest.approx(distance(restored, np.stack(masks) == 0), rel=1e-4)
    assert "Fréchet distance of 3 restorations from 3 pictures; that of their truths is 0.00" in " ".join(
        printed.split()
    )


@pytest.mark.parametrize("words", [["--frechet", "pictures"], ["--model", "tiny.safetensors"]])
def test_pictures_and_model_go_together(words, runs, refused):
    assert "go together" in refused(runs / "inpainting" / "one", words[0], runs / words[1])


def test_restorations_of_another_size_are_refused():
    distance = FeatureDistance(POOLING, some_pictures()[0])
    with pytest.raises(UserError, match="restorations of 16x16"):
        distance(np.zeros((2, 16, 16, 3), np.uint8), np.ones((2, 16, 16), bool))
