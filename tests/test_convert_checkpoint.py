"""scripts/convert_checkpoint.py: what stays, what goes, in which precision."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from scripts.convert_checkpoint import main
from tests.checkpoints import Call, dumps, write_zip


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
