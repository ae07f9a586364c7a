"""Checkpoints that lack something or hold too much, files that do not fit, and configurations that are none."""

import json
import logging
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ldm.util import instantiate_from_config
from model_loader import (
    get_model,
    load_model_from_config,
    load_yaml,
    resolve_device,
    resolve_model,
)
from tests.model_loader.small import CONFIG, assert_same, changed
from tests.reference.recorded import HERE
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted(path.stem for path in (HERE / "checkpoints").glob("*.json"))
FIRST_STAGE = "first_stage_model."


@pytest.mark.parametrize("prefix", [FIRST_STAGE, ""])
def test_the_first_stage_comes_from_its_own_file_when_the_model_lacks_it(prefix, state, ckpt, tmp_path):
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(FIRST_STAGE)}
    first = ckpt({**own, "loss.logvar": torch.ones(1)}, "first.ckpt")
    rest = ckpt({k: v for k, v in state.items() if not k.startswith(FIRST_STAGE)})
    config = changed(first_stage_config__params__ckpt_path=str(first))
    assert_same(load_model_from_config(config, rest), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", f"module.{FIRST_STAGE}"])
def test_the_first_stages_own_file_may_have_the_prefixes_of_training(prefix, state, ckpt):
    own = {prefix + k.removeprefix(FIRST_STAGE): v for k, v in state.items() if k.startswith(FIRST_STAGE)}
    first = ckpt(own, "first.ckpt")
    rest = ckpt({k: v for k, v in state.items() if not k.startswith(FIRST_STAGE)})
    assert_same(load_model_from_config(changed(first_stage_config__params__ckpt_path=str(first)), rest), state)


def test_the_configuration_that_was_given_is_not_the_advice(tmp_path):
    config = ROOT / "configs" / "latent-diffusion" / "demo-ldm-vq-4.yaml"
    stored = load_file(ROOT / "models" / "demo" / "model.safetensors")
    save_file({k: v for k, v in stored.items() if k.startswith("model.")}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"tensors missing .*\nlikely cause: first_stage_config") as error:
        load_model_from_config(load_yaml(config), tmp_path / "a.safetensors")
    assert "give that as" not in str(error.value)


def test_a_first_stage_that_is_nowhere_is_said_with_its_path_and_the_remedy(state, ckpt):
    state.pop("first_stage_model.quant_conv.weight")
    with pytest.raises(UserError, match="nowhere/vq-f4/model.ckpt") as error:
        load_model_from_config(CONFIG, ckpt(state))
    assert "bash scripts/download_models.sh vq-f4" in str(error.value)
    with pytest.raises(UserError, match=r"1 tensors missing .*quant_conv\.weight.*\n.*first_stage_config"):
        load_model_from_config(changed(first_stage_config__params__ckpt_path=None), ckpt(state))


def test_a_measured_scale_comes_from_the_file_and_must_be_there(state, ckpt):
    config = changed(scale_by_std=True)
    with pytest.raises(UserError, match=r"1 tensors missing \(scale_factor\)"):
        load_model_from_config(config, ckpt(state))
    model = load_model_from_config(config, ckpt({**state, "scale_factor": torch.tensor(0.25)}))
    assert float(model.scale_factor) == 0.25


def test_a_measured_scale_that_the_configuration_does_not_ask_for_is_a_warning(state, ckpt, caplog):
    load_model_from_config(CONFIG, ckpt({**state, "scale_factor": torch.tensor(0.25)}))
    assert "scale_by_std" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("model.diffusion_model.out.2.weight"), r"1 tensors missing .*out\.2\.weight"),
        (
            lambda s: s.update({"model.diffusion_model.out.2.bias": torch.ones(4)}),
            r"1 tensors of another shape .*out\.2\.bias \(4 in the file, 3 in the model\)",
        ),
        (
            lambda s: s.update({"model.diffusion_model.more.weight": torch.ones(4)}),
            r"1 tensors that the model does not have \(model\.diffusion_model\.more",
        ),
        (lambda s: s.update({"alphas_cumprod": torch.ones(500)}), "500 in the file, 1000 in the model"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_names(state, ckpt, spoil, message):
    spoil(state)
    with pytest.raises(UserError, match=message) as error:
        load_model_from_config(CONFIG, ckpt(state))
    assert "likely cause: the configuration is another model's" in str(error.value)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("ddconfig__mid_attention", r"20 tensors that the model does not have \(first_stage_model\..*attn_1"),
        ("use_quant_conv", r"2 tensors that the model does not have \(first_stage_model\.quant_conv"),
        ("use_post_quant_conv", r"2 tensors that the model does not have \(first_stage_model\.post_quant_conv"),
    ],
)
def test_a_first_stage_with_more_than_its_configuration_has_is_refused(key, told, state, ckpt):
    config = changed(**{f"first_stage_config__params__{key}": False})
    with pytest.raises(UserError, match=told) as error:
        load_model_from_config(config, ckpt(state))
    assert "likely cause: first_stage_config describes another autoencoder" in str(error.value)


def test_attention_that_the_configuration_leaves_out_is_refused(ckpt):
    attention = changed(first_stage_config__params__ddconfig__attn_resolutions=[8])
    path = ckpt(instantiate_from_config(attention["model"]).state_dict())
    load_model_from_config(attention, path)
    with pytest.raises(UserError, match=r"tensors that the model does not have \(first_stage_model\..*attn\.0"):
        load_model_from_config(CONFIG, path)


def test_what_training_keeps_beside_a_first_stage_does_no_harm(state, ckpt):
    names = ("loss.logvar", "model_ema.decay", "quantize.used", "quantize.embedding.cluster_size", "colorize")
    extra = {FIRST_STAGE + name: torch.ones(2) for name in (*names, "quantize.embedding.embed_avg")}
    assert_same(load_model_from_config(CONFIG, ckpt(state | extra)), state)


def test_another_family_is_refused_with_a_short_list(state, ckpt):
    config = changed(unet_config__params__model_channels=64, unet_config__params__channel_mult=[1, 2, 2])
    with pytest.raises(UserError, match="likely cause: the configuration is another model's") as error:
        load_model_from_config(config, ckpt(state))
    assert len(str(error.value)) < 1500


def test_a_first_stage_and_something_else_are_recognised(state, ckpt):
    own = {k.removeprefix(FIRST_STAGE): v for k, v in state.items() if k.startswith(FIRST_STAGE)}
    config = changed(first_stage_config__params__ckpt_path=None)
    with pytest.raises(UserError, match="a first stage alone"):
        load_model_from_config(config, ckpt(own))
    with pytest.raises(UserError, match=r"names such as generator\.conv"):
        load_model_from_config(config, ckpt({"generator.conv": torch.ones(1)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(state, ckpt, value):
    state["model.diffusion_model.out.2.weight"][0, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"out\.2\.weight holds NaN or infinity"):
        load_model_from_config(CONFIG, ckpt(state))


def test_a_value_that_is_not_finite_and_not_used_does_no_harm(state, ckpt):
    assert_same(load_model_from_config(CONFIG, ckpt({**state, "loss.w": torch.tensor(float("nan"))})), state)


def test_the_class_of_an_absent_framework_as_a_key(state, tmp_path, monkeypatch, caplog):
    module = types.ModuleType("absent_framework")
    exec("class Callback: pass", vars(module))
    module.Callback.__module__ = module.__name__
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        torch.save({"callbacks": {module.Callback: 1}, "state_dict": state}, tmp_path / "a.ckpt")
    with caplog.at_level(logging.INFO, "resample"):
        assert_same(load_model_from_config(CONFIG, tmp_path / "a.ckpt"), state)
    assert "absent_framework.Callback" in caplog.text


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_published_tensors(name):
    want = json.loads((HERE / "checkpoints" / f"{name}.json").read_text())
    config = load_yaml(ROOT / "configs/latent-diffusion" / f"{name}.yaml")
    with torch.device("meta"):
        model = instantiate_from_config(config["model"])
    have = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert have == {name: shape for name, shape in want["state_dict"].items() if not name.startswith("model_ema.")}
    assert (
        sum(p.numel() for p in model.parameters()) + 12 * 1000 + ("scale_factor" in have)
        == want["parameters_without_ema"]
    )


def test_a_training_configuration_of_ones_own_loads_unchanged(state, ckpt, tmp_path):
    config = changed(
        **{"monitor": "val/loss_simple_ema", "first_stage_key": "image", "cond_stage_key": "image", "log_every_t": 200},
        **{"num_timesteps_cond": 1, "cond_stage_trainable": False, "concat_mode": False, "loss_type": "l1"},
        **{"ckpt_path": "older.ckpt", "ignore_keys": ["x"], "load_only_unet": False, "base_learning_rate": 1e-6},
        scheduler_config={"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": {"warm_up_steps": [10000]}},
        first_stage_config__params__lossconfig={"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": {}},
        first_stage_config__params__monitor="val/rec_loss",
        unet_config__params__use_checkpoint=True,
    )
    config["model"]["base_learning_rate"] = 2.0e-06
    config["data"] = {"target": "main.DataModuleFromConfig", "params": {"batch_size": 42}}
    config["lightning"] = {
        "trainer": {"benchmark": True},
        "callbacks": {"image_logger": {"target": "main.ImageLogger"}},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    assert_same(get_model(tmp_path / "own.yaml", ckpt(state), device="cpu"), state)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected `model:`"),
        ({"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion"}}, "`params:`"),
        ({"model": 3}, "expected `model:`"),
        ({"model": {"target": "os.system", "params": {}}}, "LatentDiffusion"),
        ({"model": {"target": "torch.nn.Identity", "params": {"a": 1}}}, "not a latent diffusion model"),
        ({"model": {"target": "${nothing}", "params": {}}}, "nothing"),
        (changed(unet_config__params__channel_mult="wide"), "channel_mult: expected a list"),
        (changed(unet_config__params__model_channels=-32), "model_channels: expected a whole number"),
        (changed(unet_config__target="subprocess.Popen"), "UNetModel"),
        (changed(unet_config__params__atention_resolutions=[2]), "attention_resolutions"),
        (changed(first_stage_config=None), "target"),
        (
            changed(unet_config={"target": "torch.nn.Identity"}),
            "unet_config cannot be torch.nn.Identity: expected ldm.",
        ),
        (changed(unet_config="__is_unconditional__"), "unet_config cannot be __is_unconditional__"),
        (changed(first_stage_config={"target": "torch.nn.Identity"}), "first_stage_config cannot be torch.nn.Identity"),
    ],
)
def test_a_configuration_that_builds_no_model_is_refused_in_one_line(state, ckpt, config, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_model_from_config(config, ckpt(state))
    assert "\n" not in str(error.value)


def test_a_missing_checkpoint_is_said_with_path_remedy_and_demo(tmp_path):
    path = tmp_path / "ldm" / "lsun_churches" / "model.ckpt"
    with pytest.raises(UserError) as error:
        load_model_from_config(CONFIG, path)
    for part in (str(path), "bash scripts/download_models.sh lsun_churches", "models/demo/model.safetensors"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"download_models\.sh ffhq"):
        get_model(ROOT / "configs/latent-diffusion/ffhq-ldm-vq-4.yaml", tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="is a folder without a checkpoint"):
        resolve_model(tmp_path)


def test_words_for_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device() == resolve_device("cpu", 3) == torch.device("cpu")
    for device in ("cuda", "mps"):
        with pytest.raises(UserError, match="--device cpu"):
            resolve_device(device)
    with pytest.raises(UserError, match="'cuda'"):
        resolve_device("cudaa")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto", 1) == resolve_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="no CUDA card 2: this machine offers 2"):
        resolve_device("auto", 2)
