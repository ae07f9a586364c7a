"""scripts/convert_checkpoint.py: what stays, what goes, in which precision."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ldm.checkpoints.diffusers_config import read_config
from model_loader import get_model, model_config
from scripts.convert_checkpoint import main
from tests.checkpoints import Call, dumps, write_zip
from tests.diffusers_folder import write_folder
from tests.tiny import family, write_model
from util.yaml import load_yaml


@pytest.fixture
def convert(capsys):
    """Run the script's command; gives (status, output, messages)."""

    def convert(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return convert


@pytest.fixture
def state():
    torch.manual_seed(0)
    shared = torch.randn(6, 2)
    return {
        "model.diffusion_model.a.0.weight": torch.randn(3, 4),
        "model.diffusion_model.b.bias": torch.randn(4).t(),
        "first_stage_model.encoder.w": shared[:3],
        "first_stage_model.decoder.w": shared[2:],
        "cond_stage_model.embedding.weight": torch.randn(5, 2).t(),
        "betas": torch.rand(10) * 1e-7,
        "scale_factor": torch.tensor(0.1234567),
        "model_ema.diffusion_modela0weight": torch.ones(3, 4),
        "model_ema.diffusion_modelbbias": torch.ones(4),
        "model_ema.num_updates": torch.tensor(3),
        "loss.discriminator.weight": torch.ones(2),
        "first_stage_model.loss.logvar": torch.ones(1),
        "logvar": torch.ones(10),
    }


@pytest.fixture
def source(state, tmp_path):
    torch.save({"state_dict": state, "optimizer_states": [torch.ones(9)]}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


TRAINING = ("model_ema.", "loss.", "first_stage_model.loss.", "logvar")


def test_what_sampling_uses_stays_to_the_bit_and_nothing_else(convert, state, source, tmp_path):
    target = tmp_path / "new.safetensors"
    status, output, _ = convert(source, target)
    assert status == 0
    assert "7 tensors" in output
    assert "6 that only training used" in output
    got = load_file(target)
    assert sorted(got) == sorted(name for name in state if not name.startswith(TRAINING))
    assert all(torch.equal(got[name], state[name]) for name in got)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ckpt", "new.safetensors"]


def test_half_precision_for_networks_and_not_for_schedules(convert, state, source, tmp_path):
    target = tmp_path / "new.safetensors"
    assert convert("--half", source, target)[0] == 0
    got = load_file(target)
    for name, tensor in got.items():
        network = name.startswith(("model.", "first_stage_model.", "cond_stage_model."))
        assert tensor.dtype == (torch.float16 if network else torch.float32)
        assert torch.equal(tensor, state[name].to(tensor.dtype))


def test_the_moving_average_in_place_of_the_weights(convert, state, source, tmp_path):
    target = tmp_path / "new.safetensors"
    assert convert("--ema", source, target)[0] == 0
    got = load_file(target)
    assert torch.equal(got["model.diffusion_model.a.0.weight"], torch.ones(3, 4))
    assert torch.equal(got["first_stage_model.decoder.w"], state["first_stage_model.decoder.w"])
    assert not any(name.startswith(TRAINING) for name in got)
    with safe_open(target, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "weights": "moving average"}


def test_a_first_stage_alone_is_converted_too(convert, tmp_path):
    state = {"encoder.w": torch.ones(2), "quantize.embedding.weight": torch.ones(3), "loss.w": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "vq.ckpt")
    assert convert("--half", tmp_path / "vq.ckpt", tmp_path / "vq.safetensors")[0] == 0
    got = load_file(tmp_path / "vq.safetensors")
    assert {name: tensor.dtype for name, tensor in got.items()} == {
        "encoder.w": torch.float16,
        "quantize.embedding.weight": torch.float16,
    }


def test_a_folder_keeps_its_configuration(convert, tmp_path):
    folder = write_folder(tmp_path / "folder", "vq", scheduler={"beta_schedule": "squaredcos_cap_v2"},
                          vqvae={"scaling_factor": 0.3})  # fmt: skip
    status, output, _ = convert(folder, tmp_path / "new.safetensors")
    assert (status, f"{tmp_path / 'new.yaml'}: its configuration" in output) == (0, True)
    want, got = (get_model(None, path, device="cpu") for path in (folder, tmp_path / "new.safetensors"))
    assert (got.settings.beta_schedule, got.scale_factor) == ("cosine", 0.3)
    assert got.settings == want.settings
    assert got.state_dict().keys() == want.state_dict().keys()
    assert all(torch.equal(tensor, got.state_dict()[name]) for name, tensor in want.state_dict().items())
    assert convert("--half", folder, tmp_path / "new.safetensors")[0] == 0


def test_the_tokenizer_of_a_folder_is_found_from_everywhere(convert, tmp_path, monkeypatch):
    write_folder(tmp_path / "text", "text")
    monkeypatch.chdir(tmp_path)
    assert convert("text", "new.safetensors")[0] == 0
    params = load_yaml("new.yaml")["model"]["params"]["cond_stage_config"]["params"]
    assert params["tokenizer"] == str(tmp_path / "text" / "tokenizer")
    assert load_yaml("new.yaml") == read_config(tmp_path / "text")


def test_the_yaml_beside_a_file_goes_with_it(convert, tmp_path):
    config, weights = write_model(tmp_path, family(scale_factor=0.3))
    assert convert(weights, tmp_path / "new.safetensors")[0] == 0
    assert load_yaml(tmp_path / "new.yaml") == load_yaml(config)
    config.write_text(f"# my own words\n{config.read_text()}")
    before = config.read_text()
    assert convert("--half", weights, weights)[0] == 0
    assert config.read_text() == before


def test_a_configuration_that_takes_the_average_is_honoured(convert, tmp_path):
    config, weights = write_model(tmp_path, family(use_ema=True))
    tensors = load_file(weights)
    unet = [name for name in tensors if name.startswith("model.")]
    averages = {"model_ema." + name.removeprefix("model.").replace(".", ""): 2 * tensors[name] for name in unet}
    torch.save(tensors | averages, weights.with_suffix(".ckpt"))
    assert convert(weights.with_suffix(".ckpt"), tmp_path / "new.safetensors")[0] == 0
    got = get_model(None, tmp_path / "new.safetensors", device="cpu").state_dict()
    assert all(torch.equal(got[name], 2 * tensors[name]) for name in unet)
    assert model_config(None, weights)["model"]["params"]["use_ema"]
    status, _, messages = convert(weights.with_suffix(".ckpt"), weights)
    assert (status, f"{config} is there and holds another configuration" in messages) == (2, True)


def test_another_configuration_at_the_new_file_is_left_alone(convert, source, tmp_path, caplog):
    write_model(tmp_path)
    (tmp_path / "new.yaml").write_text("model: {}")
    status, _, messages = convert(tmp_path / "tiny.safetensors", tmp_path / "new.safetensors")
    assert (status, "give the new file another name" in messages) == (2, True)
    assert not (tmp_path / "new.safetensors").exists()
    assert (tmp_path / "new.yaml").read_text() == "model: {}"
    assert convert(source, tmp_path / "new.safetensors")[0] == 0
    assert f"{tmp_path / 'new.yaml'} is there, and is taken for the new file's configuration" in caplog.text


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "pipeline."])
def test_prefixes_hide_nothing(prefix, convert, state, tmp_path):
    torch.save({"module": {prefix + name: tensor for name, tensor in state.items()}}, tmp_path / "model.ckpt")
    status, output, _ = convert("--half", tmp_path / "model.ckpt", tmp_path / "new.safetensors")
    assert (status, "7 tensors" in output) == (0, True)
    got = load_file(tmp_path / "new.safetensors")
    assert sorted(got) == sorted(name for name in state if not name.startswith(TRAINING))
    assert got["model.diffusion_model.a.0.weight"].dtype == torch.float16
    assert torch.equal(got["betas"], state["betas"])


def test_prefixes_inside_names_and_of_a_first_stage_alone(convert, tmp_path):
    first_stage = {"module.encoder.w": torch.ones(2), "module.loss.w": torch.ones(1)}
    inside = {"model.diffusion_model._orig_mod.a": torch.ones(2), "first_stage_model.module.loss.w": torch.ones(1)}
    for state, name in ((first_stage, "encoder.w"), (inside, "model.diffusion_model._orig_mod.a")):
        torch.save(state, tmp_path / "model.ckpt")
        assert convert("--half", tmp_path / "model.ckpt", tmp_path / "new.safetensors")[0] == 0
        got = load_file(tmp_path / "new.safetensors")
        assert {key: tensor.dtype for key, tensor in got.items()} == {name: torch.float16}


def test_averages_beside_the_weights_stay_behind(convert, state, tmp_path):
    unet = {name: tensor for name, tensor in state.items() if name.startswith("model.")}
    torch.save(unet | {f"ema.{name}": tensor for name, tensor in unet.items()}, tmp_path / "model.ckpt")
    assert convert(tmp_path / "model.ckpt", tmp_path / "new.safetensors")[0] == 0
    assert sorted(load_file(tmp_path / "new.safetensors")) == sorted(unet)


def test_a_converted_file_can_be_converted_in_place(convert, state, source, tmp_path):
    target = tmp_path / "new.safetensors"
    convert(source, target)
    assert convert("--half", target, target)[0] == 0
    assert load_file(target)["first_stage_model.encoder.w"].dtype == torch.float16


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        ({"model.diffusion_model.b.bias": torch.tensor([float("nan")])}, [], "holds NaN"),
        ({"model.diffusion_model.b.bias": torch.tensor([1e5])}, ["--half"], "above 65504"),
        ({"model.diffusion_model.c.bias": torch.ones(1)}, ["--ema"], "no complete moving average"),
    ],
)
def test_what_cannot_be_converted_leaves_an_old_file_as_it_was(convert, state, tmp_path, spoil, options, message):
    torch.save({**state, **spoil}, tmp_path / "model.ckpt")
    target = tmp_path / "new.safetensors"
    target.write_text("old")
    status, _, messages = convert(*options, tmp_path / "model.ckpt", target)
    assert (status, target.read_text()) == (2, "old")
    assert message in messages
    assert "Traceback" not in messages
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ckpt", "new.safetensors"]


def test_a_hostile_or_missing_file_is_refused(convert, tmp_path):
    sentinel, target = tmp_path / "sentinel", tmp_path / "new.safetensors"
    write_zip(tmp_path / "hostile.ckpt", dumps(Call(eval, f"open({str(sentinel)!r}, 'w')")), {})
    status, _, messages = convert(tmp_path / "hostile.ckpt", target)
    assert status == 2
    assert "builtins.eval" in messages
    assert convert(tmp_path / "nothing.ckpt", target)[0] == 2
    assert not sentinel.exists()
    assert not target.exists()


def test_another_ending_is_refused(convert, source, tmp_path):
    status, _, messages = convert(source, tmp_path / "new.ckpt")
    assert (status, "must end in .safetensors" in messages) == (2, True)


def test_help_shows_every_option_and_examples(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(option in output for option in ("--ema", "--half", "examples:"))
