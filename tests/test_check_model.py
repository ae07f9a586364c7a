"""Verdicts on the demo model, whole and spoilt in ways that checkpoints are, and on a tiny one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.models.diffusion.summary import summary
from ldm.modules.encoders.modules import ClassEmbedder
from model_loader import build_model
from scripts.check_model import main
from scripts.model_checks import verdicts
from scripts.model_checks.check import Check
from tests.diffusers_folder import write_folder
from tests.tiny import family, write_model, write_pictures
from util.yaml import load_yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "latent-diffusion" / "demo-ldm-vq-4.yaml"
WEIGHTS = ROOT / "models" / "demo" / "model.safetensors"
FILE = "diffusion_pytorch_model.safetensors"
FEW = ["--limit", "3", "--samples", "2", "--steps", "5", "--device", "cpu"]


@pytest.fixture
def check(tmp_path, capsys):
    """Check a model; gives the status and what is said about each thing."""

    def check(config, weights, *extra):
        given = [] if config is None else ["--ldm_config", config]
        words = [*given, "--diffusion_config", weights, "--save_dir", tmp_path / "out", *FEW, *extra]
        status = main([*map(str, words)])
        out, err = capsys.readouterr()
        assert status != 2, err
        lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line)
        return status, lines | {"all": out}

    return check


def configuration(tmp_path, **changes):
    """The demo model's YAML with other parameters."""
    config = yaml.safe_load(CONFIG.read_text())
    config["model"]["params"] |= changes
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "own.yaml"


def shuffled(tmp_path, prefix):
    """The demo model's weights, those below a prefix in random order."""
    generator = torch.Generator().manual_seed(0)

    def mix(tensor):
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape)

    mixed = {name: mix(t) if name.startswith(prefix) else t for name, t in load_file(WEIGHTS).items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    return tmp_path / "mixed.safetensors"


def test_the_demo_model_is_fine(check, tmp_path):
    status, said = check(CONFIG, WEIGHTS)
    assert status == 0
    assert said["verdict:"] == "fine"
    assert float(said["round"].split()[1]) > 29
    for about in ("round", "codebook", "prior", "scale"):
        assert said[about].endswith(": fine")
    assert "128x128, unconditional; VQ first stage (f = 4, 8 channels, 16,384 codes)" in said["all"]
    assert "UNet 7.8 million, first stage 2.8 million" in said["all"]
    assert "0 ignored" in said["tensors"]
    assert said["average"] == "the file holds no moving average"
    assert Image.open(tmp_path / "out" / "sheet.png").width > 800


@pytest.mark.parametrize("wrong", [0.2, pytest.param(4.0, marks=pytest.mark.slow)])
def test_a_wrong_scale_factor_is_told_with_the_right_one(wrong, check, tmp_path):
    right = yaml.safe_load(CONFIG.read_text())["model"]["params"].get("scale_factor", 1.0)
    status, said = check(configuration(tmp_path, scale_factor=wrong * right), WEIGHTS)
    assert status == 1
    assert said["verdict:"] == "not right: scale"
    assert said["round"].endswith(": fine")
    assert "wrong scale_factor" in said["scale"]
    assert float(said["scale"].split()[-1]) == pytest.approx(right, rel=0.25)


def test_a_prior_of_random_weights_samples_noise(check, tmp_path):
    status, said = check(CONFIG, shuffled(tmp_path, "model."))
    assert status == 1
    assert said["verdict:"] == "not right: prior"
    assert "wrong weights?" in said["prior"]
    assert said["round"].endswith(": fine")


@pytest.mark.slow
def test_a_first_stage_of_random_weights_is_told(check, tmp_path):
    status, said = check(CONFIG, shuffled(tmp_path, "first_stage_model.decoder"))
    assert status == 1
    assert said["verdict:"] == "not right: round trip"
    assert "wrong first stage" in said["round"]


def test_the_moving_average_is_compared(check, tmp_path):
    config, weights = write_model(tmp_path)
    tensors = load_file(weights)
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    averages = {"model_ema." + name.removeprefix("model.").replace(".", ""): 1.1 * t for name, t in unet.items()}
    save_file(tensors | averages | {"model_ema.decay": torch.tensor(0.5)}, weights)
    pictures = write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    _, said = check(config, weights, "--data", pictures)
    assert said["average"].startswith("10.0% from the raw weights")
    assert f"{len(averages) + 1} ignored (model_ema {len(averages) + 1})" in said["tensors"]


@pytest.mark.parametrize("where", ["ema", "model_ema", "unet_ema", "use_ema", "non_ema"])
def test_the_moving_average_is_found_wherever_the_loader_finds_it(where, check, tmp_path):
    config, weights = write_model(tmp_path, family(use_ema=where == "use_ema"))
    pictures = write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    words = [config, weights.with_suffix(".ckpt")]
    tensors = load_file(weights)
    averaged = {name: 1.1 * tensor if name.startswith("model.") else tensor for name, tensor in tensors.items()}
    if where in ("unet_ema", "non_ema"):
        folder = write_folder(tmp_path / "folder", "vq")
        unet, plain = load_file(folder / "unet" / FILE), {"unet_ema": 1.1, "non_ema": 1 / 1.1}[where]
        other = folder / "unet_ema" / FILE if where == "unet_ema" else folder / "unet" / FILE.replace(".", ".non_ema.")
        other.parent.mkdir(exist_ok=True)
        save_file({name: plain * tensor for name, tensor in unet.items()}, other)
        words = [None, folder]
    elif where == "use_ema":
        names = {name: "model_ema." + name.removeprefix("model.").replace(".", "") for name in tensors}
        torch.save(tensors | {names[name]: averaged[name] for name in tensors if name.startswith("model.")}, words[1])
    else:
        torch.save({"state_dict": tensors, where: averaged}, words[1])
    _, said = check(*words, "--data", pictures)
    assert said["average"].startswith("10.0% from the raw weights")


def test_an_average_that_is_not_whole_or_not_beside_the_weights_is_told(check, tmp_path):
    config, weights = write_model(tmp_path)
    pictures = write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    tensors = load_file(weights)
    save_file(tensors | {"model_ema.decay": torch.tensor(0.5)}, weights)
    _, said = check(config, weights, "--data", pictures)
    assert "holds no complete moving average of the weights (that of model.diffusion_model." in said["average"]
    torch.save({"ema": tensors}, tmp_path / "average.ckpt")
    _, said = check(config, tmp_path / "average.ckpt", "--data", pictures)
    assert said["average"] == "the weights are the average, or equal to it"


def test_prefixed_tensors_are_counted_as_taken(check, tmp_path):
    config, weights = write_model(tmp_path)
    pictures = write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    tensors = load_file(weights)
    _, said = check(config, weights, "--data", pictures)
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "prefixed.safetensors")
    _, prefixed = check(config, tmp_path / "prefixed.safetensors", "--data", pictures)
    assert prefixed["tensors"] == said["tensors"]
    assert f"{len(tensors)} matched, 0 ignored" in said["tensors"]


def test_a_first_stage_from_a_file_of_its_own_was_not_computed(check, tmp_path):
    config, weights = write_model(tmp_path)
    settings = yaml.safe_load(config.read_text())
    settings["model"]["params"]["first_stage_config"]["params"]["ckpt_path"] = str(tmp_path / "first.ckpt")
    config.write_text(yaml.safe_dump(settings))
    tensors = load_file(weights)
    first = [name for name in tensors if name.startswith("first_stage_model.")]
    torch.save({name: tensors[name] for name in first}, tmp_path / "first.ckpt")
    save_file({name: tensor for name, tensor in tensors.items() if name not in first}, weights)
    pictures = write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    _, said = check(config, weights, "--data", pictures)
    assert said["tensors"].endswith(f"0 that it lacks were computed, {len(first)} came from the first stage's own file")


def test_the_scale_factor_is_that_of_the_file(check, tmp_path):
    config, weights = write_model(tmp_path, family(scale_by_std=True))
    save_file(load_file(weights) | {"scale_factor": torch.tensor(0.2277)}, weights)
    pictures = write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    _, said = check(config, weights, "--data", pictures)
    assert "; scale factor 0.2277; the UNet" in said["all"]
    without_weights = "\n".join(summary(build_model(load_yaml(config))))
    assert "; scale factor of the checkpoint; the UNet" in without_weights


def test_verdicts_at_their_limits():
    assert verdicts.on_round_trip([31.0, 31.0]).text == "31.0 dB over 2 pictures, the worst 31.0: fine"
    assert [verdicts.on_round_trip([psnr]).good for psnr in (26, 20, 19.9)] == [True, True, False]
    assert [verdicts.on_codebook(used, 16384, 4096).good for used in (3000, 100, 81)] == [True, True, False]
    assert verdicts.on_prior(0.5, 0.5, 1.0, 1.0, 1.0)[-1].text.endswith("fine")
    assert not verdicts.on_prior(1.2, 1.2, 1.0, 1.0, 1.0)[0].good
    assert not verdicts.on_prior(1.2, 1.2, 30.0, 1.0, 1.0)[0].good
    assert not verdicts.on_prior(0.5, float("nan"), float("nan"), 1.0, 1.0)[0].good
    assert verdicts.on_prior(2.0, 0.5, 0.18, 0.2, 1.0)[-1].text.endswith("The pictures suggest about 0.2")
    assert "better" in verdicts.on_average(0.01, 0.5, 0.4).text
    assert "worse" in verdicts.on_average(0.01, 0.5, 0.9).text


@pytest.mark.parametrize(("classes", "label"), [(1000, 0), (1001, 1000), (2000, 0)])
def test_classes_are_checked_by_the_null_class_or_the_first(classes, label):
    stage = ClassEmbedder(4, classes)
    model = SimpleNamespace(cond_stage_model=stage, get_learned_conditioning=stage)
    (condition,) = Check.guidance(SimpleNamespace(class_label=None), model, 1).values()
    assert torch.equal(condition, stage.embedding.weight[label][None, None])


def test_the_configuration_that_fits_is_named(tmp_path, capsys):
    config, _ = write_model(tmp_path)
    words = ["--ldm_config", config, "--diffusion_config", WEIGHTS, "--save_dir", tmp_path / "out"]
    assert main([*map(str, words)]) == 2
    err = capsys.readouterr().err
    assert f"it fits {CONFIG}: give that as --ldm_config" in err
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--diffusion_config", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", str(ROOT / "data" / "demo" / "900000.png")], "two pictures or more"),
        (["--limit", "1"], "--limit"),
        (["--class_label", "3"], "unconditional"),
    ],
)
def test_what_cannot_be_checked(words, message, tmp_path, capsys):
    model = ["--ldm_config", str(CONFIG), "--diffusion_config", str(WEIGHTS), "--save_dir", str(tmp_path / "out")]
    assert main([*model, "--device", "cpu", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") <= 3
    assert not (tmp_path / "out").exists()
