"""Sampling the prior from the command line, with a tiny model of random weights."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from scripts import compare_samplers, sample
from scripts.sampling.samples import Samples
from tests.tiny import SIDE, write_model, write_pictures
from util.metrics import frechet_distance


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


def words(place, out, *extra):
    model = ["--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors", "--device", "cpu"]
    return [str(word) for word in (*model, "--save_dir", out, "--steps", 3, "--n", 3, "--quiet", *extra)]


def pictures(out):
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted((out / "samples").glob("*"))}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "plms", "dpm_solver"])
def test_pictures_a_sheet_and_the_settings_come_out(sampler, place, tmp_path, capsys):
    assert sample.main(words(place, tmp_path, "--sampler", sampler)) == 0
    found = pictures(tmp_path)
    assert list(found) == ["00000.png", "00001.png", "00002.png"]
    assert all(picture.shape == (SIDE, SIDE, 3) for picture in found.values())
    assert np.ptp(np.stack(list(found.values())), axis=0).max() > 10  # they are not all the same
    assert Image.open(tmp_path / "sheet.png").size == (3 * (SIDE + 2) + 2, SIDE + 4)
    record = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert (record["settings"]["sampler"], record["settings"]["steps"], record["run"]["seed"]) == (sampler, 3, 0)
    assert f"{12 if sampler == 'plms' else 3} passes" in capsys.readouterr().out


def test_a_model_that_tells_its_own_architecture_needs_no_other_file(place, tmp_path):
    assert (place / "tiny.yaml").is_file()  # of the checkpoint's own name, beside it
    assert sample.main(words(place, tmp_path / "both")) == 0
    own = ["--model", place / "tiny.safetensors", "--device", "cpu", "--steps", 3, "--n", 3, "--quiet"]
    assert sample.main([str(word) for word in (*own, "--save_dir", tmp_path / "own")]) == 0
    found, other = (pictures(tmp_path / out) for out in ("both", "own"))
    assert all(np.array_equal(found[name], other[name]) for name in found)


def test_neither_batches_nor_the_number_change_a_sample(place, tmp_path):
    for out, extra in (("one", ["--batch_size", "1"]), ("all", ["--n", "5"]), ("two", ["--batch_size", "2"])):
        assert sample.main(words(place, tmp_path / out, "--sampler", "ddpm", *extra)) == 0
    found = [pictures(tmp_path / out) for out in ("one", "all", "two")]
    assert len(found[1]) == 5
    for name, picture in found[0].items():
        for other in found[1:]:
            assert np.abs(picture - other[name]).max() <= 1  # rounding to 8 bits


def test_what_is_there_stays_and_what_is_missing_is_made(place, tmp_path, monkeypatch):
    assert sample.main(words(place, tmp_path / "whole")) == 0
    assert sample.main(words(place, tmp_path / "cut", "--n", "1")) == 0
    before = (tmp_path / "cut" / "samples" / "00000.png").stat().st_mtime_ns
    sampled = []
    inner = Samples._pictures
    monkeypatch.setattr(Samples, "_pictures", lambda *args: sampled.append(args[-1]) or inner(*args))
    assert sample.main(words(place, tmp_path / "cut")) == 0
    assert sampled == [[1, 2]]
    assert (tmp_path / "cut" / "samples" / "00000.png").stat().st_mtime_ns == before
    for (name, picture), other in zip(
        pictures(tmp_path / "whole").items(), pictures(tmp_path / "cut").values(), strict=True
    ):
        assert np.abs(picture - other).max() <= 1, name


MISTAKES = [
    (["--sampler", "dpm_slover"], "did you mean 'dpm_solver'"),
    (["--sampler", "dpm_solver", "ordre=3"], "did you mean 'order'"),
    (["--sampler", "dpm_solver", "order=4"], "dpm_solver.order: expected a whole number from 1 to 3, got 4"),
    (["eta=2"], "ddim.eta"),
    (["eta"], "key=value"),
    (["--steps", "1001"], "a whole number from 1 to 1000"),
    (["--steps", "0"], "--steps"),
    (["--n", "0"], "--n"),
    (["--class_label", "3"], "unconditional"),
    (["--scale", "nan"], "--scale"),
    (["--diffusion_config", "nowhere.ckpt"], "nowhere.ckpt"),
    (["--stepz", "3"], "--stepz"),
]


@pytest.mark.parametrize(("mistake", "told"), MISTAKES, ids=[" ".join(mistake) for mistake, _ in MISTAKES])
def test_a_mistake_is_refused_before_anything_is_written(mistake, told, place, tmp_path, capsys):
    assert sample.main(words(place, tmp_path / "out", *mistake)) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_samples_by_other_settings_are_not_mixed(place, tmp_path, capsys):
    assert sample.main(words(place, tmp_path)) == 0
    assert sample.main(words(place, tmp_path, "--seed", "1")) == 2
    assert "run.seed: 0 there, 1 now" in capsys.readouterr().err
    assert sample.main(words(place, tmp_path, "eta=0.5")) == 2
    assert "settings.ddim.eta" in capsys.readouterr().err


def test_latents_can_be_decoded_without_the_codebook(place, tmp_path, capsys):
    for out, extra in (("with", []), ("without", ["--no_codebook"])):
        assert sample.main(words(place, tmp_path / out, *extra)) == 0
    found, other = (pictures(tmp_path / out) for out in ("with", "without"))
    assert any(np.abs(found[name] - other[name]).max() > 1 for name in found)
    assert sample.main(words(place, tmp_path / "without")) == 2
    assert "settings.codebook" in capsys.readouterr().err


# The comparison.


def test_the_distance_of_gaussians_is_its_closed_form():
    rng = np.random.RandomState(0)
    a = rng.randn(4000, 3)
    a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T  # mean 0, covariance 1 exactly
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # Of N(0, 1) and N(m, d^2) in each direction: m^2 + (1 - d)^2.
    shift, scale = np.array([1.0, -2.0, 0.5]), np.array([3.0, 0.5, 1.0])
    assert frechet_distance(a, a * scale + shift) == pytest.approx((shift**2 + (1 - scale) ** 2).sum(), rel=1e-9)
    rotation, _ = np.linalg.qr(rng.randn(3, 3))
    assert frechet_distance(a @ rotation, a * scale @ rotation) == pytest.approx(((1 - scale) ** 2).sum(), rel=1e-9)


def test_samplers_are_compared_and_a_larger_number_adds_to_what_is_there(place, tmp_path, capsys):
    faces = write_pictures(tmp_path / "faces", [f"{index}.png" for index in range(8)])
    model = ["--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors"]
    runs = ["ddim:2", "dpm_solver:2:order=3"]
    for count in (2, 4):
        extra = ["--reference", faces, "--out", tmp_path / "out", "--n", count, "--threads", torch.get_num_threads()]
        assert compare_samplers.main([str(word) for word in (*model, *extra, *runs)]) == 0
    table = (tmp_path / "out" / "samplers.md").read_text()
    assert table in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        ["pictures of the reference", ""],
        ["the same, encoded and decoded", ""],
        ["ddim:2", "2"],
        ["dpm_solver:2:order=3", "3"],
    ]
    assert all(float(row[2]) > 0 for row in rows)
    assert len(list((tmp_path / "out" / "ddim_2" / "samples").glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("run", "told"), [("ddim", "steps"), ("ddmi:3", "did you mean"), ("ddim:3:eta=7", "eta"), ("ddim:3:x", "x")]
)
def test_a_run_that_cannot_be_is_refused(run, told, place, tmp_path, capsys):
    model = ["--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors"]
    words = [*model, "--reference", tmp_path, "--out", tmp_path / "out", run]
    assert compare_samplers.main([str(word) for word in words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
