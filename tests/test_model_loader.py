"""From a YAML and a checkpoint to a model, and what is said where that fails."""

import copy
import json
import logging
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ldm.util import instantiate_from_config
from model_loader import (
    build_model,
    get_model,
    load_model_from_config,
    load_yaml,
    require_checkpoint,
    resolve_device,
)
from tests.reference.recorded import HERE, recorded, relative_error
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = sorted(path.stem for path in (HERE / "checkpoints").glob("*.json"))

CONFIG = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            **{"linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, "image_size": 8, "channels": 3},
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    **{"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32},
                    **{"attention_resolutions": [2], "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 2},
                },
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.VQModelInterface",
                "params": {
                    **{"embed_dim": 3, "n_embed": 64},
                    "ckpt_path": "nowhere/vq-f4/model.ckpt",
                    "ddconfig": {
                        **{"double_z": False, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3},
                        **{"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
                    },
                },
            },
            "cond_stage_config": "__is_unconditional__",
        },
    }
}


def changed(**values):
    """The configuration with other values, by their dotted path below `model.params` (dots as two underscores)."""
    config = OmegaConf.create(copy.deepcopy(CONFIG))
    for path, value in values.items():
        OmegaConf.update(config, f"model.params.{path.replace('__', '.')}", value, force_add=True)
    return OmegaConf.to_container(config)


@pytest.fixture(scope="module")
def original():
    """The model that the checkpoints hold."""
    torch.manual_seed(0)
    return instantiate_from_config(CONFIG["model"]).eval()


@pytest.fixture
def state(original):
    return {name: tensor.clone() for name, tensor in original.state_dict().items()}


@pytest.fixture
def ckpt(tmp_path):
    """Save a state dict as a training framework does; gives the path."""

    def ckpt(state, name="model.ckpt"):
        torch.save({"epoch": 7, "global_step": 1000, "state_dict": state, "optimizer_states": [{}]}, tmp_path / name)
        return tmp_path / name

    return ckpt


def moving_averages(state):
    averages = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): 2 * v for k, v in state.items() if "model." in k[:6]
    }
    return {**averages, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}


def assert_same(model, state):
    got = model.state_dict()
    assert list(got) == list(state)
    assert all(torch.equal(got[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("model.ckpt", lambda state, path: torch.save({"state_dict": state}, path)),
        ("model.pt", lambda state, path: torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)),
        ("model.pth", torch.save),
        ("model.safetensors", save_file),
    ],
)
def test_every_format_gives_the_model_that_was_saved(original, state, tmp_path, name, save):
    save(state, tmp_path / name)
    model = load_model_from_config(CONFIG, tmp_path / name)
    assert_same(model, state)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    z, t = torch.randn(1, 3, 8, 8), torch.tensor([500])
    assert torch.equal(model.apply_model(z, t), original.apply_model(z, t))
    assert torch.equal(model.decode_first_stage(z), original.decode_first_stage(z))


def test_an_omegaconf_configuration_is_as_good(state, ckpt):
    assert_same(load_model_from_config(OmegaConf.create(CONFIG), ckpt(state)), state)


def test_weights_may_be_changed_without_changing_the_file(state, ckpt):
    path = ckpt(state)
    content = path.read_bytes()
    model = load_model_from_config(CONFIG, path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert path.read_bytes() == content


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_not_held_twice(original, state, ckpt):
    def private_megabytes():
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    state["first_stage_model.quantize.embedding.weight"] = torch.randn(8_000_000, 3)
    path = ckpt(state)
    del state["first_stage_model.quantize.embedding.weight"]
    before = private_megabytes()
    model = load_model_from_config(changed(first_stage_config__params__n_embed=8_000_000), path)
    assert private_megabytes() - before < 30  # the codebook alone has 92
    assert model.first_stage_model.quantize.embedding.weight.abs().sum() > 0


def test_half_precision_becomes_float32_and_schedules_are_computed(original, state, tmp_path):
    schedule, _ = recorded("schedules")
    networks = {k: v.half() for k, v in state.items() if k.startswith(("model.", "first_stage_model."))}
    save_file(networks, tmp_path / "half.safetensors")
    model = load_model_from_config(CONFIG, tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert all(torch.equal(model.state_dict()[name], tensor.float()) for name, tensor in networks.items())
    assert relative_error(model.betas, schedule["betas/linear"].float()) < 1e-6
    assert relative_error(model.alphas_cumprod, schedule["alphas_cumprod/linear_float32"]) < 1e-6
    assert model.apply_model(torch.randn(1, 3, 8, 8), torch.tensor([3])).dtype == torch.float32


def test_the_schedule_of_the_file_is_used_and_a_difference_is_said(state, ckpt, caplog):
    path = ckpt(state)
    load_model_from_config(CONFIG, path)
    assert not caplog.messages
    model = load_model_from_config(changed(linear_end=0.012), path)
    assert torch.equal(model.alphas_cumprod, state["alphas_cumprod"])
    assert "noise schedule" in caplog.text


def test_what_only_training_used_is_counted_in_one_line(state, ckpt, caplog):
    extra = {
        "loss.perceptual.weight": torch.ones(2),
        "first_stage_model.loss.a": torch.ones(1),
        "logvar": torch.ones(9),
    }
    path = ckpt({**state, **moving_averages(state), **extra})
    with caplog.at_level(logging.INFO, "resample"):
        assert_same(load_model_from_config(CONFIG, path), state)
    (line,) = caplog.messages
    averages = sum(name.startswith("model.") for name in state) + 2
    assert f"{averages + 3} tensors" in line
    for part in (f"model_ema {averages}", "loss 1", "first_stage_model.loss 1", "logvar 1"):
        assert part in line


def test_the_moving_average_is_used_only_when_asked_for(state, ckpt):
    path = ckpt({**state, **moving_averages(state)})
    averaged = {name: 2 * tensor if name.startswith("model.") else tensor for name, tensor in state.items()}
    assert_same(load_model_from_config(CONFIG, path), state)
    assert_same(load_model_from_config(CONFIG, path, use_ema=True), averaged)
    assert_same(load_model_from_config(changed(use_ema=True), path), averaged)
    assert_same(load_model_from_config(changed(use_ema=True), path, use_ema=False), state)


def test_a_moving_average_that_is_not_there_is_an_error(state, ckpt):
    with pytest.raises(UserError, match="no complete moving average"):
        load_model_from_config(CONFIG, ckpt(state), use_ema=True)


def test_a_model_without_weights_takes_no_memory_and_knows_its_schedule(state):
    model = build_model(CONFIG)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model.alphas_cumprod, state["alphas_cumprod"])


def test_building_does_not_import_the_compiler(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    code = (
        "import sys; from model_loader import build_model, load_yaml; "
        f"build_model(load_yaml({str(tmp_path / 'config.yaml')!r})); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


FIRST_STAGE = "first_stage_model."


def test_the_first_stage_comes_from_its_own_file_when_the_model_lacks_it(state, ckpt, tmp_path):
    own = {k.removeprefix(FIRST_STAGE): v for k, v in state.items() if k.startswith(FIRST_STAGE)}
    first = ckpt({**own, "loss.logvar": torch.ones(1)}, "first.ckpt")
    rest = ckpt({k: v for k, v in state.items() if not k.startswith(FIRST_STAGE)})
    config = changed(first_stage_config__params__ckpt_path=str(first))
    assert_same(load_model_from_config(config, rest), state)


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
    with pytest.raises(UserError, match="not a file"):
        require_checkpoint(tmp_path)


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
