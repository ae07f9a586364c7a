"""How networks compute: what may change a result, by how much, and what must not."""

import logging

import pytest
import torch

from ldm.acceleration.arithmetic import PRECISIONS, Arithmetic, accelerate
from ldm.acceleration.precision import hold_gradient_in_range
from ldm.util import instantiate_from_config
from ldm_inverse.runs.arguments import build_parser
from tests.reference.recorded import relative_error
from tests.tiny import CONFIG
from util.errors import UserError

CPU = torch.device("cpu")


def model(**arithmetic):
    torch.manual_seed(0)
    model = instantiate_from_config(CONFIG["model"]).eval().requires_grad_(False)
    for parameter in model.model.parameters():  # some start as zeros, and would hide what comes before them
        parameter.copy_(torch.randn(parameter.shape) * 0.1)
    if arithmetic:
        accelerate(model, Arithmetic(**arithmetic))
    return model


def outputs(model):
    """Noise estimate, code, picture, and the picture's gradient."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 16, 16, generator=generator).requires_grad_()
    x, weight = torch.rand(2, 2, 3, 32, 32, generator=generator) * 2 - 1
    image = model.differentiable_decode_first_stage(z, force_not_quantize=True)
    # A mean over the pixels, small as a measurement's residual is.
    (gradient,) = torch.autograd.grad((image * weight).mean() * 1e-3, z)
    return model.apply_model(z.detach(), torch.tensor([7, 900])), model.encode_first_stage(x), image.detach(), gradient


def test_the_layout_set_at_loading_changes_rounding_only():
    plain, loaded = outputs(model()), outputs(model(precision="fp32"))
    assert all(value.is_contiguous() for value in loaded[:3])  # operators are faster so
    for expected, found in zip(plain, loaded, strict=True):
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_stays_inside_the_networks(monkeypatch, precision, tolerance):
    monkeypatch.setattr("ldm.acceleration.arithmetic._has", lambda *_: True)
    half = model(precision=precision)
    for expected, found in zip(outputs(model()), outputs(half), strict=True):
        assert found.dtype == torch.float32
        assert 1e-6 < relative_error(found, expected) < tolerance
    assert half.first_stage_model.quantize.embedding.weight.dtype == torch.float32
    assert half.alphas_cumprod.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_gradients_far_below_float16_survive_it():
    x = torch.rand(3, 1, 4, 4).requires_grad_()
    inner = x * 1.0
    out = (inner.half() * 2).float()
    hold_gradient_in_range(inner, out)
    seed = torch.randn(3, 1, 4, 4) * torch.tensor([1e-12, 1e3, 0.0])[:, None, None, None]
    (gradient,) = torch.autograd.grad(out, x, seed)
    assert gradient[2].count_nonzero() == 0
    for sample in range(2):
        assert relative_error(gradient[sample], 2 * seed[sample]) < 1e-3


def kept(network):
    """Numbers that one decoding keeps for its gradient."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        network.differentiable_decode_first_stage(torch.zeros(1, 3, 16, 16).requires_grad_())
    return sum(sizes)


def test_less_is_kept_for_the_same_bits():
    plain, usual, low = model(), model(precision="fp32"), model(low_memory=True)
    for expected, found in zip(outputs(usual), outputs(low), strict=True):
        assert torch.equal(found, expected)
    assert kept(low) < 0.7 * kept(usual)
    assert kept(usual) < 0.6 * kept(plain)


def test_without_a_compiler_a_warning_and_the_same_results(monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(torch, "compile", refuse)
    with caplog.at_level(logging.WARNING, "resample"):
        found = outputs(model(compile=True))
    assert [record.getMessage().count("no C++ compiler") for record in caplog.records] == [1]
    for value, expected in zip(found, outputs(model(precision="fp32")), strict=True):
        assert torch.equal(value, expected)


def test_what_can_be_compiled_is(monkeypatch):
    monkeypatch.setattr("ldm.acceleration.arithmetic.can_compile", lambda _: True)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    model(compile=True)
    assert compiled == ["UNetModel", "OneByOneDecoder"]


def test_a_device_without_the_arithmetic_is_refused_by_name(monkeypatch):
    with pytest.raises(UserError, match="tf32.*cpu.*fp32"):
        Arithmetic("tf32").check(CPU)
    with pytest.raises(UserError, match="bf16"):
        Arithmetic("bf61")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    Arithmetic("fp16").check(torch.device("cuda", 0))
    with pytest.raises(UserError, match="cuda device offers only fp32, fp16"):
        Arithmetic("bf16").check(torch.device("cuda", 0))


def test_the_command_offers_the_same_precisions():
    (action,) = [action for action in build_parser()._actions if action.dest == "precision"]
    assert tuple(action.choices) == PRECISIONS


@pytest.mark.parametrize("arithmetic", [{}, {"low_memory": True}, {"precision": "fp16"}])
def test_tensors_keep_their_names(monkeypatch, arithmetic):
    monkeypatch.setattr("ldm.acceleration.arithmetic._has", lambda *_: True)
    network = model()
    names = list(network.state_dict())
    accelerate(network, Arithmetic(**arithmetic))
    assert list(network.state_dict()) == names
