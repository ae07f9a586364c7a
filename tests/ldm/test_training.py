"""Training: initialisation against principal components, losses in closed form, resuming, both stages end to end."""

import copy
import csv
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data.picture_array import load_pictures
from ldm.models.autoencoder import VQModelInterface
from ldm.modules.ema import ExponentialMovingAverage
from ldm.training.autoencoder import AutoencoderLoss, DecoderLoss, round_trip_psnr
from ldm.training.initialise import codebook_from_data, linear_encoder, patch_components
from ldm.training.latents import encode_pictures
from ldm.training.loop import LoopSettings, Training, learning_rate, stage_at
from ldm.training.pictures import Crop, cut, random_crops, to_model_range
from tests.tiny import CONFIG, write_pictures
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DDCONFIG = {
    "double_z": False, "z_channels": 5, "resolution": 32, "in_channels": 3, "out_ch": 3,
    "ch": 32, "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def first_stage(*mult, entries=16):
    torch.manual_seed(0)
    return VQModelInterface(5, entries, {**DDCONFIG, "ch_mult": mult})


def some_pictures(count=12, side=32):
    """Smooth pictures with some noise, so that every component has a deviation."""
    rng = np.random.RandomState(0)
    waves = np.cumsum(np.cumsum(rng.standard_normal((count, side, side, 3)), axis=1), axis=2)
    waves = 30 * waves / waves.std() + 128 + 5 * rng.standard_normal(waves.shape)
    return waves.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("mult", [(1, 4), (4, 4), (1, 2, 4), (1, 4, 4)])
@pytest.mark.parametrize("whitening", [0.0, 0.25])
def test_linear_encoder_gives_principal_components(mult, whitening):
    """Against NumPy's singular value decomposition of the patches; signs are free."""
    pictures, model = some_pictures(), first_stage(*mult)
    linear_encoder(model, pictures, whitening)
    images = to_model_range(pictures)
    with torch.no_grad():
        latents = model.encode(images)
    f = model.downsampling
    patches = torch.nn.functional.unfold(images, f, stride=f).transpose(1, 2).flatten(0, 1).double().numpy()
    _, singular, vectors = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
    deviations = singular[:5] / np.sqrt(len(patches) - 1)
    want = (patches - patches.mean(0)) @ vectors[:5].T * deviations**-whitening
    want /= np.sqrt(np.mean(deviations ** (2 - 2 * whitening)))
    got = latents.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    signs = np.sign((got * want).sum(0))
    assert np.abs(got * signs - want).max() < 2e-3 * np.abs(want).max()


def test_linear_encoder_can_be_trained_further():
    pictures, model = some_pictures(), first_stage(1, 4)
    linear_encoder(model, pictures, 0.0)
    model.encode(to_model_range(pictures[:2])).square().mean().backward()
    for name in ("down.0.block.0.conv2.weight", "mid.block_1.conv2.weight", "conv_in.weight"):
        assert model.encoder.get_parameter(name).grad.abs().max() > 0


def test_linear_encoder_says_what_it_needs():
    with pytest.raises(UserError, match="128 channels"):
        linear_encoder(first_stage(1, 2), some_pictures(), 0.0)


def test_components_are_orthonormal_and_sorted():
    components, mean, deviations = patch_components(some_pictures(), 4, 6)
    flat = components.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert mean.shape == (3, 4, 4)
    assert (deviations.diff() <= 0).all()


def test_codebook_is_in_use_and_better_than_random_entries():
    pictures, model = some_pictures(), first_stage(1, 4, entries=64)
    linear_encoder(model, pictures, 0.0)
    codebook_from_data(model, pictures, np.random.RandomState(0))
    with torch.no_grad():
        latents = model.encode(to_model_range(pictures))
        quantised, _, (_, _, indices) = model.quantize(latents)
        error = (quantised - latents).square().mean()
        flat = latents.permute(0, 2, 3, 1).reshape(-1, 5)
        model.quantize.embedding.weight.copy_(flat[torch.randperm(len(flat))[:64]])
        random_error = (model.quantize(latents)[0] - latents).square().mean()
    assert len(indices.unique()) == 64
    assert error < random_error


def test_decoder_loss_is_the_loss_of_the_whole_pictures_round_trip(tmp_path):
    pictures, model = some_pictures(4), first_stage(1, 4)
    linear_encoder(model, pictures, 0.0)
    codebook_from_data(model, pictures, np.random.RandomState(0))
    latents = encode_pictures(model.encode, pictures, tmp_path / "latents.f16", torch.device("cpu"))
    stage = {"batch_size": 3, "crop": 32}
    loss = DecoderLoss(model, pictures, latents, 1 / 3)(stage, np.random.RandomState(5))
    images = cut(pictures, random_crops(pictures, 3, 32, np.random.RandomState(5), 2), 32)
    with torch.no_grad():
        codes = model.encode(images)
        decoded = [model.decode(codes[:1]), model.decode(codes[1:], force_not_quantize=True)]
        want = (torch.cat(decoded) - images).square().mean()
    assert abs(loss.item() - want) < 2e-3 * want
    loss.backward()
    assert model.decoder.conv_in.weight.grad is not None
    assert model.encoder.conv_in.weight.grad is None


def test_unused_entries_are_revived():
    pictures, model = some_pictures(), first_stage(1, 4, entries=64)
    with torch.no_grad():
        model.quantize.embedding.weight.fill_(1e3)
        model.quantize.embedding.weight[0] = 0
    loss, rng = AutoencoderLoss(model, pictures), np.random.RandomState(0)
    for _ in range(100):
        loss({"batch_size": 1, "crop": 32}, rng)
    assert (model.quantize.embedding.weight.abs().max(1).values < 1e2).all()


def test_crops_show_the_pictures():
    pictures = some_pictures()
    crop = cut(pictures, [Crop(3, 4, 6, False), Crop(3, 4, 6, True)], 16)
    whole = torch.from_numpy(pictures[3].astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(crop[0], whole[:, 4:20, 6:22])
    assert torch.allclose(crop[1], whole.flip(2)[:, 4:20, 6:22])
    places = random_crops(pictures, 200, 16, np.random.RandomState(0), grid=4)
    assert {c.top for c in places} == {0, 4, 8, 12, 16}
    assert {c.mirrored for c in places} == {True, False}


def test_round_trip_psnr_is_that_of_the_written_pictures():
    pictures = some_pictures(2)

    class Off(torch.nn.Conv2d):
        """A round trip that adds 8 of 255 grey levels."""

        def encode(self, x):
            return x

        def decode(self, z, force_not_quantize):
            return z + 8 / 127.5

    dark = (pictures // 2).astype(np.uint8)
    psnr, _ = round_trip_psnr(Off(1, 1, 1), dark)
    assert psnr == pytest.approx(20 * np.log10(255 / 8), abs=1e-3)


def test_pictures_come_from_folders_and_zips_and_are_cached(tmp_path):
    write_pictures(tmp_path / "a", ["x.png", "sub/y.jpg"], side=48)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a" / "x.png", "deep/x.png")
        archive.writestr("notes.txt", "no picture")
    sources = [tmp_path / "a", tmp_path / "b.zip"]
    pictures = load_pictures(sources, 32, tmp_path / "cache.u8")
    assert pictures.shape == (3, 32, 32, 3)
    assert np.array_equal(pictures[1], pictures[2])
    assert load_pictures(sources[:1], 16, tmp_path / "cache.u8").shape == (2, 16, 16, 3)


def test_training_pictures_are_read_as_all_others(tmp_path):
    """Transparency over white and 16 bits scaled, from a folder and from a zip file."""
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    grey = Image.fromarray(np.full((32, 32), 32896, dtype=np.uint16))
    (tmp_path / "a").mkdir()
    clear.save(tmp_path / "a" / "clear.png")
    grey.save(tmp_path / "a" / "grey.png")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a" / "grey.png", "grey.png")
    pictures = load_pictures([tmp_path / "a", tmp_path / "b.zip"], 32, tmp_path / "cache.u8")
    assert [np.unique(picture).tolist() for picture in pictures] == [[255], [128], [128]]


def test_pictures_that_cannot_be_used_are_told(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no pictures"):
        load_pictures([tmp_path / "a"], 32, tmp_path / "cache.u8")
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        load_pictures([tmp_path / "none"], 32, tmp_path / "cache.u8")
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(UserError, match=r"broken\.png"):
        load_pictures([tmp_path / "a"], 32, tmp_path / "cache.u8")


def test_moving_average_in_closed_form():
    weight = torch.nn.Linear(1, 1, bias=False)
    average = ExponentialMovingAverage(weight, decay=0.9)
    start = weight.weight.item()
    values, want = [1.0, -2.0, 0.5], start
    for n, value in enumerate(values, 1):
        torch.nn.init.constant_(weight.weight, value)
        average.update(weight)
        decay = min(0.9, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * value
    with average.applied(weight):
        assert weight.weight.item() == pytest.approx(want)
    assert weight.weight.item() == values[-1]


def loop(**changes):
    settings = {"max_minutes": 0.02, "learning_rate": 0.1, "ema_decay": 0.9, "stages": [{"share": 1.0}]}
    return LoopSettings(**{**settings, **changes})


def test_learning_rate_warms_up_and_falls_to_nothing():
    rates = [learning_rate(loop(), step, 0.0) for step in (0, 99, 199, 5000)]
    assert rates == pytest.approx([0.0005, 0.05, 0.1, 0.1], abs=1e-5)
    assert learning_rate(loop(), 5000, 0.5) == pytest.approx(0.05, abs=1e-5)
    assert learning_rate(loop(), 5000, 1.0) == pytest.approx(0, abs=1e-5)


def test_stages_share_the_time():
    stages = [{"share": 0.25, "n": 0}, {"share": 0.75, "n": 1}]
    assert [stage_at(stages, p)["n"] for p in (0, 0.24, 0.26, 0.99, 1.0)] == [0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="shares"):
        loop(stages=[{"share": 0.5}])


def test_training_minimises_logs_and_resumes(tmp_path):
    def training(minutes):
        torch.manual_seed(0)
        return Training(torch.nn.Linear(2, 1), loop(max_minutes=minutes), tmp_path, 0, lambda: {"seen": 1.0})

    first = training(0.01)
    draws = []

    def loss(stage, rng):
        draws.append(rng.uniform())
        return first.network(torch.ones(1, 2)).square().mean()

    before = loss({}, np.random.RandomState(0)).item()
    draws.clear()
    first.run(loss)
    assert first.step == len(draws) > 0
    assert loss({}, np.random.RandomState(0)).item() < 0.5 * before

    second = training(0.02)
    assert (second.step, second.seconds) == (first.step, first.seconds)
    assert torch.equal(second.network.weight, first.network.weight)
    assert torch.equal(second.average.average["weight"], first.average.average["weight"])
    assert second.optimiser.state_dict()["state"][0]["step"] == first.step
    assert second.rng.uniform() == first.rng.uniform()
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert int(rows[-1]["step"]) == first.step
    assert rows[-1]["seen"] == "1.0"


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    training = Training(torch.nn.Linear(1, 1), loop(), tmp_path, 0, dict)
    with pytest.raises(UserError, match="nan at step 1"):
        training.run(lambda stage, rng: training.network(torch.full((1, 1), float("nan"))).mean())
    assert not (tmp_path / "state.pt").exists()


def training_config(folder):
    config = copy.deepcopy(CONFIG)
    config["model"]["params"]["first_stage_config"]["params"]["ddconfig"]["ch_mult"] = [1, 4]
    stages = [{"share": 1.0, "batch_size": 2, "crop": 16}]
    common = {"learning_rate": 1e-3, "ema_decay": 0.9, "stages": stages}
    config["training"] = {
        "autoencoder": {"init": "linear", "whitening": 0.25, "trainable": "all", **common},
        "diffusion": {**common, "weight_cap": 20},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(config))
    return folder / "model.yaml"


def train(*words, status=0):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train.py", *map(str, words)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


def test_both_stages_give_weights_that_the_command_loads(tmp_path):
    from model_loader import get_model

    config, data = training_config(tmp_path), write_pictures(tmp_path / "pictures", [f"{i}.png" for i in range(6)])
    first, prior = tmp_path / "first", tmp_path / "prior"
    common = ("--config", config, "--data", data, "--max_minutes", 0.06, "--threads", 1)
    assert "round-trip PSNR" in train("--stage", "autoencoder", *common, "--out", first).stdout
    train("--stage", "diffusion", *common, "--out", prior, "--first_stage", first / "weights.safetensors")
    for folder in (first, prior):
        assert {"weights.safetensors", "log.csv", "sheet.png", "state.pt"} <= {p.name for p in folder.iterdir()}
    model = get_model(config, prior / "weights.safetensors", "cpu")
    psnr, _ = round_trip_psnr(model.first_stage_model, load_pictures([data], 32, tmp_path / "again.u8"))
    assert psnr > 12


def test_mistakes_end_with_status_2(tmp_path):
    config = training_config(tmp_path)
    done = train(
        "--stage", "autoencoder", "--config", config, "--data", tmp_path / "none", "--out", tmp_path / "o", status=2
    )
    assert done.stderr.count("\n") == 1
    assert "none" in done.stderr
    train("--stage", "diffusion", "--config", config, "--data", tmp_path, "--out", tmp_path / "o", status=2)
