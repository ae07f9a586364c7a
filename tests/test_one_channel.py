"""Priors of one channel, as those of tomography are: grey pictures and sinograms from the file to the report."""

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from sample_condition import main
from scripts.evaluate import main as evaluate
from scripts.evaluation.side_by_side import panels, read_run
from tests.runs import rows
from tests.test_families import QUICK
from tests.tiny import SIDE, family, write_model, write_pictures

MEASUREMENT = {"operator": {"name": "tomography", "angles": 9}, "noise": {"name": "gaussian", "sigma": 0.01}}


def grey_config(kl: bool):
    config = family({"in_channels": 2, "out_channels": 2}, channels=2)
    stage = config["model"]["params"]["first_stage_config"]
    stage["params"]["embed_dim"] = 2
    stage["params"]["ddconfig"] |= {"in_channels": 1, "out_ch": 1, "z_channels": 2, "double_z": kl}
    if kl:
        stage["target"] = "ldm.models.autoencoder.AutoencoderKL"
        del stage["params"]["n_embed"]
    return config


@pytest.fixture(scope="module", params=["vq", "kl"])
def place(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder, grey_config(request.param == "kl"))
    write_pictures(folder / "pictures", ["a.png"])
    (folder / "task.yaml").write_text(yaml.safe_dump({"measurement": MEASUREMENT}))
    return folder


def run(place, out, *words):
    model = ["--ldm_config", place / "tiny.yaml", "--diffusion_config", place / "tiny.safetensors"]
    task = ["--task_config", place / "task.yaml", "--device", "cpu", "--ddim_steps", 4, "--quiet"]
    return main([str(word) for word in (*model, *task, "--save_dir", out, *words, *QUICK)])


def test_a_colour_picture_is_measured_and_restored_in_grey(place, tmp_path):
    assert run(place, tmp_path, "--data", place / "pictures", "conditioning.resample.refine={max_iters: 2}") == 0
    shown = {kind: Image.open(tmp_path / kind / "a.png") for kind in ("input", "label", "recon")}
    assert {picture.mode for picture in shown.values()} == {"L"}
    assert shown["recon"].size == (SIDE, SIDE)
    (original,) = (shown[kind] for kind in ("input", "label") if shown[kind].size == (SIDE, SIDE))
    colour = Image.open(place / "pictures" / "a.png")
    assert np.abs(np.asarray(colour.convert("L"), float) - np.asarray(original, float)).max() <= 1
    (y,) = (value for key, value in load_file(tmp_path / "label" / "a.safetensors").items() if key == "y")
    assert y.shape[:2] == (1, 1)
    assert (tmp_path / "report.html").is_file()


def test_a_sinogram_fits_it(place, tmp_path):
    assert run(place, tmp_path / "first", "--data", place / "pictures") == 0
    y = load_file(tmp_path / "first" / "label" / "a.safetensors")["y"]
    np.save(tmp_path / "sinogram.npy", y[0, 0])
    assert run(place, tmp_path / "again", "--measurement", tmp_path / "sinogram.npy") == 0
    pictures = [np.asarray(Image.open(tmp_path / path)) for path in ("first/recon/a.png", "again/recon/sinogram.png")]
    assert all(picture.shape == (SIDE, SIDE) for picture in pictures)


def test_a_grey_run_is_evaluated_as_it_told_itself(place, tmp_path, capsys):
    words = ("--data", place / "pictures", "measurement.operator={name: super_resolution, scale_factor: 4}")
    assert run(place, tmp_path / "run", *words) == 0
    assert evaluate([str(tmp_path / "run"), "--save_dir", str(tmp_path / "tables")]) == 0
    (told,) = rows(tmp_path / "run" / "metrics.csv")
    found = {row["run"]: row for row in rows(tmp_path / "tables" / "images.csv")}
    for key in ("psnr", "ssim"):
        assert float(found["run"][key]) == pytest.approx(float(told[key]), rel=1e-5)
        assert float(found["baseline"][key]) == pytest.approx(float(told[f"baseline_{key}"]), rel=1e-5)
    shown = read_run(tmp_path / "run")
    truth, _, baseline, restored = panels(shown, shown.metrics[0])
    assert {panel.shape for panel in (truth, baseline, restored)} == {(SIDE, SIDE, 3)}
    psnr = -10 * np.log10(np.square(truth / 255 - baseline / 255).mean())
    assert psnr == pytest.approx(float(told["baseline_psnr"]), abs=1e-3)


@pytest.mark.parametrize("baseline", ["non_local_means", "total_variation"])
def test_noise_is_removed_from_grey(baseline, place, tmp_path):
    denoising = f"measurement.operator={{name: noise, baseline: {baseline}}}"
    Image.open(place / "pictures" / "a.png").convert("L").save(tmp_path / "a.png")
    assert run(place, tmp_path / "out", "--measurement", tmp_path / "a.png", denoising) == 0
    assert Image.open(tmp_path / "out" / "baseline" / "a.png").mode == "L"


def test_a_measurement_in_colour_is_refused_with_the_cause(place, tmp_path, capsys):
    words = ("--measurement", place / "pictures", "measurement.operator={name: noise}")
    assert run(place, tmp_path, *words) == 2
    assert capsys.readouterr().err.strip().endswith("(1, 1, 32, 32): it has 3 channels where 1 would fit the model")


@pytest.mark.parametrize("name", ["jpeg", "colourisation"])
def test_an_operator_for_colour_is_refused_in_a_line(name, place, tmp_path, capsys):
    assert run(place, tmp_path / "out", "--data", place / "pictures", f"measurement.operator={{name: {name}}}") == 2
    assert f"{name} is for colour images, and the model's have 1 channel" in capsys.readouterr().err
