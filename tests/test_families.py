"""The command with models of the other published families, tiny and of random weights: class-conditional, and KL."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from ldm.models.diffusion.ddpm import LatentDiffusion
from model_loader import get_model
from sample_condition import main
from scripts import sample
from tests.text_model import SHAPE, embedder_config
from tests.tiny import SIDE, family, write_model, write_pictures

CONDITIONAL_UNET = {"use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 16}
CLASSES = {"conditioning_key": "crossattn", "cond_stage_key": "class_label"}


def classes(count):
    params = {"n_classes": count, "embed_dim": 16, "key": "class_label"}
    return CLASSES | {"cond_stage_config": {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": params}}


# As the published files of these names are, but for their size.
FAMILIES = {
    "cin256-v2": family(CONDITIONAL_UNET, **classes(1001)),
    "cin-ldm-vq-f8": family(CONDITIONAL_UNET, **classes(1000)),
    "lsun_churches-ldm-kl-8": family(
        {"in_channels": 4, "out_channels": 4, "use_scale_shift_norm": True, "resblock_updown": True},
        {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "ddconfig": {"double_z": True, "z_channels": 4, "ch_mult": [1, 1, 1]},
        },
        image_size=SIDE // 4,
        channels=4,
        scale_by_std=True,
        scale_factor=0.22,
    ),
}
QUICK = [
    "conditioning.resample.interval=1",
    "conditioning.resample.stages={plain: 0, latent: 1/2}",
    "conditioning.resample.pixel.max_iters=2",
    "conditioning.resample.latent.max_iters=2",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    for name, config in FAMILIES.items():
        (folder / name).mkdir()
        write_model(folder / name, config)
    write_pictures(folder / "pictures", ["a.png"])
    task = {"measurement": {"operator": {"name": "super_resolution", "scale_factor": 4}, "noise": {"name": "clean"}}}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder


def words(place, name, out, *extra):
    model = ["--ldm_config", place / name / "tiny.yaml", "--diffusion_config", place / name / "tiny.safetensors"]
    run = ["--task_config", place / "task.yaml", "--data", place / "pictures", "--save_dir", out, "--device", "cpu"]
    return [str(word) for word in (*model, *run, "--ddim_steps", 4, "--quiet", *QUICK, *extra)]


@pytest.fixture(scope="module")
def text_place(place):
    pytest.importorskip("transformers")
    folder = place / "text"
    folder.mkdir()
    config = family(
        {**CONDITIONAL_UNET, "context_dim": SHAPE["hidden_size"]}, cond_stage_config=embedder_config(folder)
    )
    write_model(folder, config)
    return place


@pytest.fixture
def seen(monkeypatch):
    """The UNet's inputs: (batch, conditioning) of each call."""
    calls, forward = [], LatentDiffusion.differentiable_apply_model

    def watched(model, z, t, cond=None):
        calls.append((z.shape, cond))
        return forward(model, z, t, cond)

    monkeypatch.setattr(LatentDiffusion, "differentiable_apply_model", watched)
    return calls


def embedding(place, name, label):
    model = get_model(place / name / "tiny.yaml", place / name / "tiny.safetensors", "cpu")
    return model.get_learned_conditioning({"class_label": torch.tensor([label])})


def restored(out):
    rows = list(csv.DictReader((Path(out) / "metrics.csv").read_text().splitlines()))
    return (Path(out) / "recon" / "a.png").is_file() and len(rows) == 1


def test_label_1000_is_none_where_there_are_1001_classes(place, tmp_path, seen):
    assert main(words(place, "cin256-v2", tmp_path)) == 0
    assert restored(tmp_path)
    none = embedding(place, "cin256-v2", 1000)
    assert all(shape == (1, 3, SIDE // 2, SIDE // 2) and torch.equal(cond, none) for shape, cond in seen)


@pytest.mark.parametrize("sampler", ["resample", "dps", "psld", "daps", "sitcom"])
def test_guidance_is_between_the_class_and_none(sampler, place, tmp_path, seen):
    own = [f"conditioning.main_sampler={sampler}", "class_label=7", "--ddim_scale", "3"]
    own += ["conditioning.daps.iterations=1", "conditioning.daps.ode_steps=1", "conditioning.sitcom.input.max_iters=1"]
    assert main(words(place, "cin256-v2", tmp_path, *own)) == 0
    assert restored(tmp_path)
    both = torch.cat([embedding(place, "cin256-v2", label) for label in (1000, 7)])
    assert all(shape[0] == 2 and torch.equal(cond, both) for shape, cond in seen)
    trace = list(csv.DictReader((tmp_path / "progress" / "a" / "trace.csv").read_text().splitlines()))
    assert sum(int(row["unet"]) for row in trace) == len(seen)


def test_a_scale_of_1_asks_for_the_class_alone(place, tmp_path, seen):
    assert main(words(place, "cin256-v2", tmp_path, "class_label=7")) == 0
    seven = embedding(place, "cin256-v2", 7)
    assert all(shape[0] == 1 and torch.equal(cond, seven) for shape, cond in seen)


def test_a_model_without_a_null_class_takes_a_class_and_no_guidance(place, tmp_path, capsys):
    assert main(words(place, "cin-ldm-vq-f8", tmp_path / "a", "class_label=7")) == 0
    assert restored(tmp_path / "a")
    for extra, told in (
        ([], "class_label=N, from 0 to 999"),
        (["class_label=1000"], "from 0 to 999"),
        (["class_label=7", "--ddim_scale", "2"], "no null class"),
    ):
        assert main(words(place, "cin-ldm-vq-f8", tmp_path / "b", *extra)) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("sampler", ["resample", "psld"])
def test_a_kl_model_encodes_by_the_mode_times_its_scale_factor(sampler, place, tmp_path, seen, monkeypatch):
    name, encoded = "lsun_churches-ldm-kl-8", []
    encode_mode = LatentDiffusion.encode_mode

    def watched(model, x):
        encoded.append((x.detach(), encode_mode(model, x)))
        return encoded[-1][1]

    monkeypatch.setattr(LatentDiffusion, "encode_mode", watched)
    assert main(words(place, name, tmp_path, f"conditioning.main_sampler={sampler}")) == 0
    assert restored(tmp_path)
    assert all(shape == (1, 4, SIDE // 4, SIDE // 4) for shape, _ in seen)
    model = get_model(place / name / "tiny.yaml", place / name / "tiny.safetensors", "cpu")
    assert model.scale_factor.item() == pytest.approx(0.22)  # a tensor of the checkpoint
    assert encoded
    for image, latent in encoded:
        mean, _ = model.first_stage_model.quant_conv(model.first_stage_model.encoder(image)).chunk(2, dim=1)
        assert torch.allclose(latent, 0.22 * mean, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_samples_too(name, place, tmp_path, seen):
    model = ["--ldm_config", place / name / "tiny.yaml", "--diffusion_config", place / name / "tiny.safetensors"]
    label = ["--class_label", 3] if name.startswith("cin") else []
    run = ["--sampler", "plms", "--steps", 2, "--n", 2, "--quiet", "--device", "cpu", "--save_dir", tmp_path]
    assert sample.main([str(word) for word in (*model, *run, *label)]) == 0
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    if label:
        three = embedding(place, name, 3).expand(2, -1, -1)
        assert all(torch.equal(cond, three) for _, cond in seen)


def test_prompts_are_told_and_kept(text_place, tmp_path, seen, capsys):
    prompts = ["--prompt", "a cat", "--negative_prompt", "a dog", "--ddim_scale", "3"]
    assert main(words(text_place, "text", tmp_path / "a", *prompts)) == 0
    assert restored(tmp_path / "a")
    model = get_model(text_place / "text" / "tiny.yaml", text_place / "text" / "tiny.safetensors", "cpu")
    both = model.get_learned_conditioning(["a dog", "a cat"])
    assert all(torch.equal(cond, both) for _, cond in seen)
    settings = yaml.safe_load((tmp_path / "a" / "settings.yaml").read_text())["settings"]
    assert (settings["prompt"], settings["negative_prompt"], settings["ddim_scale"]) == ("a cat", "a dog", 3.0)
    assert main(words(text_place, "text", tmp_path / "b", "class_label=7")) == 2
    assert "no classes: it takes a prompt" in capsys.readouterr().err
    assert main(words(text_place, "cin256-v2", tmp_path / "b", "--prompt", "a cat")) == 2
    assert "no prompt: it takes a class_label" in capsys.readouterr().err
