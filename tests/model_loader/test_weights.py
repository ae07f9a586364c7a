"""From a YAML and a checkpoint to a model: every format, name and form of its weights."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ldm.util import instantiate_from_config
from model_loader import (
    build_model,
    get_model,
    load_model_from_config,
    load_yaml,
    model_config,
)
from tests.model_loader.small import CONFIG, assert_same, changed, moving_averages
from tests.reference.recorded import recorded, relative_error
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


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


def other_schedule():
    """Betas, and what follows from them, of another schedule than the configuration's."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return {"betas": betas, "alphas_cumprod": torch.cumprod(1 - betas, 0)}


@pytest.mark.parametrize("held", [("betas",), ("alphas_cumprod",), ("betas", "alphas_cumprod")])
def test_a_part_of_another_schedule_gives_the_whole_of_it(held, state, ckpt, caplog):
    networks = {name: tensor for name, tensor in state.items() if name.startswith(("model.", "first_stage_model."))}
    want = other_schedule()
    model = load_model_from_config(CONFIG, ckpt(networks | {name: want[name].float() for name in held}))
    assert "noise schedule" in caplog.text
    abar = want["alphas_cumprod"]
    assert torch.allclose(model.alphas_cumprod.double(), abar, rtol=1e-5)
    assert torch.allclose(model.sqrt_alphas_cumprod.double(), abar.sqrt(), rtol=1e-5)
    assert torch.allclose(model.sqrt_recipm1_alphas_cumprod.double(), (1 / abar - 1).sqrt(), rtol=1e-3)
    # Of a product in float32, a factor is known to its rounding: 6e-8 of 1, against a beta of 1e-4 or more.
    assert torch.allclose(model.betas.double(), want["betas"], rtol=2e-3)


@pytest.mark.parametrize("held", [("betas",), ("alphas_cumprod",), ("betas", "alphas_cumprod")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_schedule_in_half_precision_is_refused(held, dtype, state, ckpt):
    for name in ("betas", "alphas_cumprod"):
        state.pop(name)
    rounded = {name: other_schedule()[name].to(dtype) for name in held}
    with pytest.raises(UserError, match="another noise schedule than the configuration's, and holds it in half"):
        load_model_from_config(CONFIG, ckpt(state | rounded))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("beta_schedule", ["linear", "cosine"])
def test_the_rounding_of_a_schedule_is_no_other_schedule(beta_schedule, dtype, ckpt, caplog):
    config = changed(beta_schedule=beta_schedule)
    state = instantiate_from_config(config["model"]).state_dict()
    rounded = {name: tensor.to(dtype) if tensor.shape == (1000,) else tensor for name, tensor in state.items()}
    assert_same(load_model_from_config(config, ckpt(rounded)), state)
    assert not caplog.messages


def test_no_signal_at_the_last_step_is_said_to_be_unsupported(state, ckpt):
    state["betas"][-1], state["alphas_cumprod"][-1] = 1, 0
    state["sqrt_recip_alphas_cumprod"][-1] = float("inf")
    for lacking in ((), ("betas",), ("alphas_cumprod",)):
        held = {name: tensor for name, tensor in state.items() if name not in lacking}
        with pytest.raises(
            UserError, match=r"no signal at the last step \(zero terminal SNR\), which is not supported"
        ):
            load_model_from_config(CONFIG, ckpt(held))
    state["betas"][-1] = 2
    with pytest.raises(UserError, match="betas holds numbers outside 0 to 1: the file is damaged"):
        load_model_from_config(CONFIG, ckpt(state))


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


@pytest.mark.parametrize("names", [("model", "ema"), ("params", "params_ema"), ("model_state_dict", "ema_state_dict")])
def test_weights_and_their_average_under_two_names_of_a_file(names, state, tmp_path):
    averaged = {name: 2 * tensor if name.startswith("model.") else tensor for name, tensor in state.items()}
    torch.save({names[0]: state, names[1]: averaged, "step": 3}, tmp_path / "a.pt")
    assert_same(load_model_from_config(CONFIG, tmp_path / "a.pt"), state)
    assert_same(load_model_from_config(CONFIG, tmp_path / "a.pt", use_ema=True), averaged)


@pytest.mark.parametrize("name", ["state_dict", "module", "model", "ema_model"])
@pytest.mark.parametrize("names", [("state_dict", "ema"), ("model", "model_ema")])
def test_an_average_may_be_in_a_container_of_its_own(names, name, state, tmp_path):
    averaged = {name: 2 * tensor if name.startswith("model.") else tensor for name, tensor in state.items()}
    torch.save({names[0]: state, names[1]: {name: averaged, "decay": 0.999}}, tmp_path / "a.pt")
    assert_same(load_model_from_config(CONFIG, tmp_path / "a.pt"), state)
    assert_same(load_model_from_config(CONFIG, tmp_path / "a.pt", use_ema=True), averaged)


@pytest.mark.parametrize("before", ["model.", "model.diffusion_model."])
def test_an_average_of_the_network_alone_is_found(before, state, tmp_path):
    averaged = {name: 2 * tensor if name.startswith("model.") else tensor for name, tensor in state.items()}
    network = {name.removeprefix(before): tensor for name, tensor in averaged.items() if name.startswith("model.")}
    torch.save({"state_dict": state, "ema": network}, tmp_path / "a.pt")
    assert_same(load_model_from_config(CONFIG, tmp_path / "a.pt", use_ema=True), averaged)
    save_file(state | {f"ema.{name}": tensor for name, tensor in network.items()}, tmp_path / "a.safetensors")
    assert_same(load_model_from_config(CONFIG, tmp_path / "a.safetensors", use_ema=True), averaged)
    torch.save({"state_dict": state, "ema": {"shadow": torch.ones(2)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="no complete moving average"):
        load_model_from_config(CONFIG, tmp_path / "a.pt", use_ema=True)


def test_a_moving_average_below_a_wrapper_is_found(state, ckpt):
    path = ckpt({f"module.{name}": tensor for name, tensor in (state | moving_averages(state)).items()})
    averaged = {name: 2 * tensor if name.startswith("model.") else tensor for name, tensor in state.items()}
    assert_same(load_model_from_config(CONFIG, path, use_ema=True), averaged)


@pytest.mark.parametrize("name", ["state_dict", "model", "ema", "params_ema", "params", "model_state_dict", "module"])
def test_weights_under_any_of_the_names_that_trainers_give_them(name, state, tmp_path):
    torch.save({"epoch": 1, name: state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, tmp_path / "a.pt")
    assert_same(load_model_from_config(CONFIG, tmp_path / "a.pt"), state)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"model.{name}",
        lambda name: f"ema.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("model.diffusion_model.", "model.diffusion_model._orig_mod."),
    ],
)
def test_what_wrappers_put_into_names_is_taken_off_and_said(rename, state, ckpt, caplog):
    with caplog.at_level(logging.INFO, "resample"):
        assert_same(load_model_from_config(CONFIG, ckpt({rename(name): v for name, v in state.items()})), state)
    assert "names of tensors without their prefixes, such as" in caplog.text


def test_rounded_schedules_are_computed_anew(state, tmp_path):
    """In bfloat16 the cumulative products round to 1, which no schedule has."""
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, tmp_path / "a.safetensors")
    model = load_model_from_config(CONFIG, tmp_path / "a.safetensors")
    assert torch.equal(model.alphas_cumprod, state["alphas_cumprod"])
    assert torch.equal(model.sqrt_alphas_cumprod, state["sqrt_alphas_cumprod"])
    weight = "model.diffusion_model.out.2.weight"
    assert torch.equal(model.state_dict()[weight], state[weight].bfloat16().float())


def test_shards_are_read_by_their_index_or_by_one_of_them(state, tmp_path):
    names, files = sorted(state), [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for number, file in enumerate(files):
        save_file({name: state[name] for name in names[number::2]}, tmp_path / file)
    table = {name: files[index % 2] for index, name in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    for path in (index, tmp_path / files[0], tmp_path):
        assert_same(load_model_from_config(CONFIG, path), state)
    index = index.rename(tmp_path / "model.safetensors.index.fp16.json")
    index.write_text(index.read_text().replace("model-", "model.fp16-"))
    files = [(tmp_path / file).rename(tmp_path / file.replace("model-", "model.fp16-")).name for file in files]
    for path in (index, tmp_path / files[0], tmp_path):
        assert_same(load_model_from_config(CONFIG, path), state)
    index.unlink()
    with pytest.raises(UserError, match="one of 2 shards, and model.safetensors.index.fp16.json, which lists the"):
        load_model_from_config(CONFIG, tmp_path / files[0])


def test_a_configuration_of_the_same_name_beside_a_checkpoint_is_its_own(state, tmp_path):
    torch.save(state, tmp_path / "mine.pt")
    with pytest.raises(UserError, match="mine.pt has no known architecture: give its configuration with --ldm_config"):
        get_model(None, tmp_path / "mine.pt", device="cpu")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    assert_same(get_model(None, tmp_path / "mine.pt", device="cpu"), state)


def test_the_demo_model_tells_its_own_configuration():
    path = ROOT / "models" / "demo" / "model.safetensors"
    assert model_config(None, path) == load_yaml(ROOT / "configs" / "latent-diffusion" / "demo-ldm-vq-4.yaml")


def test_a_configuration_is_told_below_a_wrapper_too(tmp_path):
    path = ROOT / "models" / "demo" / "model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in load_file(path).items()}, tmp_path / "a.safetensors")
    assert model_config(None, tmp_path / "a.safetensors") == model_config(None, path)


def test_a_wrong_configuration_is_said_with_the_one_that_fits():
    path = ROOT / "models" / "demo" / "model.safetensors"
    with pytest.raises(UserError, match=r"it fits .*demo-ldm-vq-4.yaml: give that as --ldm_config"):
        get_model(ROOT / "configs" / "latent-diffusion" / "ffhq-ldm-vq-4.yaml", path, device="cpu")


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
