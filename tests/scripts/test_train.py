"""Both stages of training by the command, end to end."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from data.picture_array import load_pictures
from ldm.training.autoencoder import round_trip_psnr
from ldm.training.diffusion import DiffusionLoss, draw_timesteps
from ldm.training.pictures import to_model_range
from ldm.training.settings import Stage
from model_loader import get_model
from scripts.train import main
from tests.tiny import training_config, write_pictures

ROOT = Path(__file__).resolve().parents[2]


def train(*words):
    assert main([*map(str, words), "--threads", "1"]) == 0


def test_both_stages_give_weights_that_the_command_loads(tmp_path, capsys):
    config, data = training_config(tmp_path), write_pictures(tmp_path / "pictures", [f"{i}.png" for i in range(6)])
    first, prior, more = (tmp_path / name for name in ("first", "prior", "more"))
    common = ("--config", config, "--data", data)
    train("--stage", "autoencoder", *common, "--max_steps", 20, "--out", first)
    assert "round-trip PSNR" in capsys.readouterr().out
    given = ("--first_stage", first / "weights.safetensors")
    train("--stage", "diffusion", *common, "--max_steps", 2, "--out", prior, *given)
    train("--stage", "diffusion", *common, "--max_steps", 2, "--out", more, "--start", prior / "weights.safetensors")
    for folder in (first, prior, more):
        assert {"weights.safetensors", "log.csv", "sheet.png", "state.pt"} <= {p.name for p in folder.iterdir()}
    model = get_model(config, prior / "weights.safetensors", "cpu")
    psnr, _ = round_trip_psnr(model.first_stage_model, load_pictures([data], 32, tmp_path / "again.u8"))
    assert psnr > 12


def test_a_first_stage_is_trained_further_and_takes_its_place_in_the_model(tmp_path):
    config, data = training_config(tmp_path), write_pictures(tmp_path / "pictures", [f"{i}.png" for i in range(6)])
    first, prior, more, both = (tmp_path / name for name in ("first", "prior", "more", "both"))
    common = ("--config", config, "--data", data)
    train("--stage", "autoencoder", *common, "--max_steps", 5, "--out", first)
    train(
        *("--stage", "diffusion", *common, "--max_steps", 1),
        *("--out", prior, "--first_stage", first / "weights.safetensors"),
    )
    train("--stage", "autoencoder", *common, "--max_steps", 20, "--out", more, "--start", prior / "weights.safetensors")
    train(
        *("--stage", "diffusion", *common, "--max_steps", 1, "--out", both),
        *("--start", prior / "weights.safetensors", "--first_stage", more / "weights.safetensors"),
    )
    pictures = load_pictures([data], 32, tmp_path / "again.u8")
    ratios = [
        round_trip_psnr(get_model(config, out / "weights.safetensors", "cpu").first_stage_model, pictures)[0]
        for out in (prior, both)
    ]
    assert ratios[1] > ratios[0] + 0.1


def test_a_trained_codebook_is_fitted_further_where_the_settings_ask(trained, tmp_path):
    config, data, weights = trained
    content = yaml.safe_load(config.read_text())
    content["training"]["autoencoder"].update(codebook={"codes": 512, "iterations": 12}, trainable="decoder")
    fitted = tmp_path / "fitted.yaml"
    fitted.write_text(yaml.safe_dump(content))
    tensors = load_file(weights)
    entries = tensors["first_stage_model.quantize.embedding.weight"]
    entries[len(entries) // 2 :] = entries[0]
    save_file(tensors, tmp_path / "poor.safetensors")
    given = ("--stage", "autoencoder", "--data", data, "--start", tmp_path / "poor.safetensors", "--max_steps", 1)
    train(*given, "--config", fitted, "--out", tmp_path / "first")
    after = load_file(tmp_path / "first/weights.safetensors")["quantize.embedding.weight"]
    model = get_model(config, weights, "cpu")
    z = model.encode_mode(to_model_range(load_pictures([data], 32, tmp_path / "pictures.u8")))

    def distance(codebook):
        model.first_stage_model.quantize.embedding.weight.data = codebook
        return (model.first_stage_model.quantize(z)[0] - z).square().mean()

    assert distance(after) < 0.9 * distance(entries)


@pytest.mark.slow
def test_a_compiled_training_takes_the_same_steps(trained, tmp_path):
    config, data, weights = trained
    for stage, name in (("autoencoder", "quantize.embedding.weight"), ("diffusion", "")):
        found = []
        for extra in ([], ["--compile"]):
            out = tmp_path / f"{stage}{len(extra)}"
            words = ("--stage", stage, "--config", config, "--data", data, "--start", weights, "--max_steps", 4)
            train(*words, "--out", out, *extra)
            found.append(load_file(out / "weights.safetensors"))
        assert all(torch.allclose(found[0][key], found[1][key], atol=1e-4) for key in found[0] if key != name)


def changed(config, **params):
    """Write a configuration whose model has other parameters beside a given one; returns its path."""
    content = yaml.safe_load(config.read_text())
    content["model"]["params"].update(params)
    path = config.with_name("changed.yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_prior_of_any_prediction_and_scale_can_be_trained(tmp_path):
    config, data = training_config(tmp_path), write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    first, prior = tmp_path / "first", tmp_path / "prior"
    train("--stage", "autoencoder", "--config", config, "--data", data, "--max_steps", 1, "--out", first)
    config = changed(config, scale_by_std=True, parameterization="v")
    words = ("--stage", "diffusion", "--config", config, "--data", data, "--out", prior)
    train(*words, "--max_steps", 1, "--first_stage", first / "weights.safetensors")
    model = get_model(config, prior / "weights.safetensors", "cpu")  # it has its scale_factor
    latents = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    stage = Stage(share=1, batch_size=1)

    # A UNet that predicts zero tells, of v, that the noise is sigma times what it sees.
    class Nothing(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return torch.zeros_like(x)

    model.model = Nothing()
    loss = DiffusionLoss(model, latents, 1)(stage, np.random.RandomState(0)).item()
    rng = np.random.RandomState(0)
    z = torch.from_numpy(latents[rng.randint(4, size=1)])
    t = torch.from_numpy(draw_timesteps(np.full(1000, 1 / 1000), 1, rng))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(int(rng.randint(2**31))))
    sigma = model.sqrt_one_minus_alphas_cumprod[t]
    assert loss == pytest.approx((sigma * model.q_sample(z, t, noise) - noise).square().mean().item(), rel=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration of a model that predicts the noise, its pictures, and its weights."""
    place = tmp_path_factory.mktemp("trained")
    config, data = training_config(place), write_pictures(place / "pictures", ["a.png", "b.png"])
    common = ("--config", config, "--data", data, "--max_steps", 1)
    train("--stage", "autoencoder", *common, "--out", place / "first")
    train(
        *("--stage", "diffusion", *common, "--out", place / "prior"),
        *("--first_stage", place / "first" / "weights.safetensors"),
    )
    return config, data, place / "prior" / "weights.safetensors"


def taught(config, folder, below, **params):
    """Write a configuration as another, of a model taught below some timesteps; returns its path."""
    content = yaml.safe_load(config.read_text())
    content["model"]["params"].update(params)
    stages = [{"share": 1, "batch_size": 8, "taught_below": list(below)}]
    content["training"]["diffusion"].update(stages=stages, learning_rate=3e-3, weight_cap=1)
    path = folder / "taught.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_network_of_v_learns_from_one_of_the_noise(trained, tmp_path):
    """The teacher is far from the data, so that what was learned came from it."""
    config, data, teacher = trained
    given = ("--stage", "diffusion", "--data", data, "--start", teacher)
    taught_v = taught(config, tmp_path, [1000], parameterization="v")
    train(
        *(*given, "--config", taught_v, "--max_steps", 150, "--out", tmp_path / "v"),
        *("--teacher", teacher, "--teacher_config", config),
    )
    before, after = (get_model(taught_v, weights, "cpu") for weights in (teacher, tmp_path / "v/weights.safetensors"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 16, 16, generator=generator)
    t = torch.arange(8) * 60 + 200
    want = get_model(config, teacher, "cpu").apply_model(x, t)
    errors = [(model.apply_model(x, t) - want).square().mean().item() for model in (before, after)]
    assert errors[1] < 0.6 * errors[0]


def test_a_teacher_takes_the_place_of_the_noise_below_its_timestep(trained):
    config, _, weights = trained
    model = get_model(config, weights, "cpu")
    latents = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()

    def loss(below, *teachers):
        stage = Stage(share=1, batch_size=16, taught_below=below)
        return DiffusionLoss(model, latents, 1, teachers=teachers)(stage, np.random.RandomState(0)).item()

    plain = loss(())
    assert plain > 0.1
    assert loss((1000,)) == loss((), model) == plain
    assert loss((1000,), model) == pytest.approx(0, abs=1e-9)  # it agrees with itself
    assert loss((500,), model) == pytest.approx(plain / 2, rel=0.2)
    other = get_model(config, weights, "cpu")
    other.apply_model = lambda x, t: torch.zeros_like(x)
    halves = loss((500, 1000), model, other), loss((500, 1000), other, model)
    assert sum(halves) == pytest.approx(loss((1000,), other), rel=1e-5)
    assert min(halves) > 0.1 * max(halves)


@pytest.mark.parametrize(
    ("below", "params", "words", "message"),
    [
        ([500], {}, [], "--teacher gives 0, and taught_below in training.diffusion.stages has 1: expected as many"),
        ([], {}, ["--teacher"], "--teacher gives 1, and taught_below in training.diffusion.stages has none"),
        ([500, 1000], {}, ["--teacher"], "has 2"),
        ([500, 400], {}, ["--teacher"], "expected ascending timesteps"),
        ([500], {"linear_start": 0.01}, ["--teacher"], "has other latents, or another noise schedule"),
        ([500], {}, ["--teacher_config"], "--teacher_config: expected one for each --teacher"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_in_a_line(below, params, words, message, trained, tmp_path, capsys):
    config, data, weights = trained
    own = taught(config, tmp_path, below, **params)
    paths = {"--teacher": weights, "--teacher_config": config}
    words = [word for option in words for word in (option, paths[option])]
    if params:
        words += ["--teacher_config", config]
    given = ["--stage", "diffusion", "--config", own, "--data", data, "--start", weights, "--out", tmp_path / "o"]
    assert main([*map(str, (*given, *words))]) == 2
    err = capsys.readouterr().err
    assert err.strip().count("\n") == err.count("usage:")
    assert message in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["grey", "classes"])
def test_models_that_cannot_be_trained_are_refused_in_a_line(kind, tmp_path, capsys):
    config, stage, given = training_config(tmp_path), "diffusion", ["--first_stage", str(tmp_path / "none")]
    if kind == "grey":
        params = yaml.safe_load(config.read_text())["model"]["params"]["first_stage_config"]
        params["params"]["ddconfig"].update(in_channels=1, out_ch=1)
        path, stage, given = changed(config, first_stage_config=params), "autoencoder", []
    else:
        embedder = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"n_classes": 4, "embed_dim": 8}}
        path = changed(config, cond_stage_config=embedder)
    words = ["--stage", stage, "--config", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "o"), *given]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert {"grey": "is of grey pictures", "classes": "is of a conditioned model"}[kind] in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_mistakes_end_with_status_2(stage, tmp_path, capsys):
    words = [
        "--stage",
        stage,
        "--config",
        training_config(tmp_path),
        "--data",
        tmp_path / "none",
        "--out",
        tmp_path / "o",
    ]
    assert main([*map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("none" if stage == "autoencoder" else "--first_stage") in err


@pytest.mark.slow
def test_as_a_process_of_its_own(tmp_path):
    config, data = training_config(tmp_path), write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    words = ["--stage", "autoencoder", "--config", config, "--data", data, "--max_steps", 1, "--out", tmp_path / "o"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train.py", *map(str, words), "--threads", "1"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, "round-trip PSNR" in done.stdout) == (0, True), done.stderr
