"""The command and its kin with --model: a folder in the diffusers layout, and checkpoints that tell what they are."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from sample_condition import main
from scripts import check_model, sample
from tests.diffusers_folder import write_folder
from tests.runs import QUICK, names, snapshot
from tests.tiny import write_model, write_pictures

ROOT = Path(__file__).resolve().parents[1]
SIDE = 32
TASK = {
    "measurement": {
        "operator": {"name": "super_resolution", "scale_factor": 4},
        "noise": {"name": "gaussian", "sigma": 0.01},
    }
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, a task, the recorded folders, and a checkpoint with its YAML beside it."""
    folder = tmp_path_factory.mktemp("models")
    write_pictures(folder / "pictures", ["a.png", "b.png"], SIDE)
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    for name in ("vq", "options", "text"):
        write_folder(folder / name, name)
    write_model(folder)
    return folder


def words(place, model, out, *extra):
    run = ["--task_config", place / "task.yaml", "--data", place / "pictures", "--save_dir", out, "--device", "cpu"]
    return [str(word) for word in ("--model", model, *run, "--ddim_steps", 3, "--quiet", "--limit", 1, *QUICK, *extra)]


NEEDS_TEXT = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")


@pytest.mark.parametrize("name", ["vq", "options", pytest.param("text", marks=NEEDS_TEXT), "tiny.safetensors"])
def test_every_kind_of_model_restores(name, place, tmp_path):
    assert main(words(place, place / name, tmp_path)) == 0
    assert names(tmp_path / "recon") == ["a"]
    run = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert run["run"]["ldm_config"] is None
    assert len(run["checkpoint"]["sha256"]) == len(run["architecture"]["sha256"]) == 64


def test_a_run_with_a_folder_is_repeated_and_guarded(place, tmp_path, capsys):
    model = shutil.copytree(place / "vq", tmp_path / "model")
    assert main(words(place, model, tmp_path / "first")) == 0
    assert main(["--from", str(tmp_path / "first"), "--save_dir", str(tmp_path / "again"), "--quiet"]) == 0
    assert snapshot(tmp_path / "again" / "recon") == snapshot(tmp_path / "first" / "recon")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert main(words(place, model, tmp_path / "first")) == 2
    assert "checkpoint.sha256" in capsys.readouterr().err


def test_the_moving_average_is_a_setting_and_is_recorded(place, tmp_path, capsys):
    assert main(words(place, place / "vq", tmp_path, "use_ema=true")) == 2
    assert "has no weights that are marked as averaged" in capsys.readouterr().err
    assert main(words(place, place / "vq", tmp_path / "raw", "use_ema=false")) == 0
    assert yaml.safe_load((tmp_path / "raw" / "settings.yaml").read_text())["settings"]["use_ema"] is False


def test_the_plan_says_what_the_model_is(place, tmp_path, capsys):
    assert main(words(place, place / "options", tmp_path, "--dry_run")) == 0
    out = capsys.readouterr().out
    assert "latent diffusion at 32x32, grey pictures, unconditional; KL first stage (f = 2, 2 channels)" in out
    assert "noise schedule: sqrt_linear, betas from 0.0001 to 0.02 in 1000 steps; scale factor 0.5" in out
    assert "the UNet predicts v" in out


# As in CompVis's files: parameters of the model, and what is said of it.
ENCODERS = "ldm.modules.encoders.modules."
CONDITIONED = {
    "text2img256": (
        {"conditioning_key": "crossattn", "cond_stage_config": {"target": f"{ENCODERS}BERTEmbedder", "params": {}}},
        "a model of texts or layouts",
    ),
    "semantic_synthesis": (
        {"conditioning_key": "concat", "cond_stage_config": {"target": f"{ENCODERS}SpatialRescaler", "params": {}}},
        "a model that is given a picture",
    ),
    "inpainting_big": (
        {"conditioning_key": "concat", "concat_mode": True, "cond_stage_config": "__is_first_stage__"},
        "conditioned on something that the command cannot give",
    ),
    "bsr_sr": (
        {"conditioning_key": "concat", "concat_mode": True, "cond_stage_config": {"target": "torch.nn.Identity"}},
        "conditioned on something that the command cannot give",
    ),
    "retrieval": (
        {"conditioning_key": "crossattn", "cond_stage_config": {"target": f"{ENCODERS}FrozenClipImageEmbedder"}},
        "a model that is given pictures",
    ),
    "hybrid": ({"conditioning_key": "hybrid"}, "conditioning_key: expected 'concat', 'crossattn' or 'adm'"),
}


@pytest.mark.parametrize("name", CONDITIONED)
def test_models_of_other_conditions_are_refused_in_a_line(name, place, tmp_path, capsys):
    config, (params, told) = yaml.safe_load((place / "tiny.yaml").read_text()), CONDITIONED[name]
    config["model"]["params"] |= params
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    extra = ["--ldm_config", tmp_path / "own.yaml"]
    assert main(words(place, place / "tiny.safetensors", tmp_path / "out", *extra)) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_programs_take_a_folder(place, tmp_path, capsys):
    few = ["--samples", "2", "--steps", "2", "--limit", "2", "--data", str(place / "pictures"), "--device", "cpu"]
    assert check_model.main(["--model", str(place / "options"), "--save_dir", str(tmp_path / "check"), *few]) in (0, 1)
    assert "as it tells itself" in capsys.readouterr().out
    own = ["--steps", "2", "--n", "2", "--device", "cpu", "--quiet"]
    assert sample.main(["--model", str(place / "vq"), "--save_dir", str(tmp_path / "samples"), *own]) == 0
    assert len(names(tmp_path / "samples" / "samples")) == 2


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--ldm_config", str(ROOT / "configs/latent-diffusion/demo-ldm-vq-4.yaml")], "has its own configuration"),
        (["--model", "CompVis/nothing"], "no checkpoint at CompVis/nothing"),
        (["--model", str(ROOT / "data")], "a folder without a checkpoint"),
    ],
)
def test_a_model_that_cannot_be_is_refused(extra, told, place, tmp_path, capsys):
    assert main(words(place, place / "vq", tmp_path / "out", *extra)) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") <= 3
    assert not (tmp_path / "out").exists()
