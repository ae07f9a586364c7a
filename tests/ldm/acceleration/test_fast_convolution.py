"""Convolutions by fewer multiplications, and SiLU behind GroupNorm: against torch's own, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from ldm.acceleration import fast_convolution
from ldm.acceleration.arithmetic import Arithmetic, accelerate
from ldm.acceleration.fast_convolution import UPSAMPLING, WINOGRAD, convolve
from ldm.acceleration.first_stage import accelerate_first_stage
from ldm.acceleration.layers import FROZEN, DirectConv, FoldedUpsample, WinogradConv, WinogradUpsample, become
from ldm.acceleration.norm_silu import norm_silu
from ldm.modules.diffusionmodules.model import Decoder
from ldm.modules.diffusionmodules.util import GroupNorm
from ldm.util import instantiate_from_config
from tests.reference.recorded import relative_error
from tests.tiny import CONFIG

METHODS = {"2": WINOGRAD[2], "4": WINOGRAD[4], "upsampling": UPSAMPLING}


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def gradient_of(out, x, seed):
    return torch.autograd.grad(out, x, seed, retain_graph=True)[0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2), (40, 33)])
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_the_same_convolution_and_gradient(monkeypatch, name, size, at_once):
    monkeypatch.setattr(fast_convolution, "BYTES_AT_ONCE", at_once)
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64).requires_grad_()
    weight, bias = torch.randn(6, 5, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    method = METHODS[name]
    larger = F.interpolate(x, scale_factor=2, mode="nearest") if name == "upsampling" else x
    expected = F.conv2d(larger, weight, bias, padding=1)
    found = convolve(x, weight, bias, method)
    assert found.shape == expected.shape
    assert relative_error(found.detach(), expected.detach()) < 1e-13
    seed = torch.randn_like(expected)
    assert relative_error(gradient_of(found, x, seed), gradient_of(expected, x, seed)) < 1e-13
    alone = convolve(x[1:], weight, bias, method)
    assert torch.equal(alone[0], found[1])


def test_can_be_differentiated_twice():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    weight, bias = torch.randn(3, 2, 3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: convolve(x, weight, bias, WINOGRAD[4]) ** 2, x)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3), (torch.bfloat16, 4)])
def test_rounding_stays_near_that_of_the_direct_sum(dtype, bound):
    torch.manual_seed(0)
    x = channels_last(torch.randn(1, 256, 32, 32)).to(dtype).requires_grad_()
    conv = torch.nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    direct = F.conv2d(x, channels_last(conv.weight).to(dtype), conv.bias.to(dtype), padding=1)
    found = become(conv.to(dtype), WinogradConv)(x)
    seed = torch.randn_like(direct)
    exact_gradient = gradient_of(exact, x, seed.double())
    for value, other, truth in (
        (found, direct, exact),
        (gradient_of(found, x, seed), gradient_of(direct, x, seed), exact_gradient),
    ):
        ours, theirs = (relative_error(each.detach().double(), truth.detach()) for each in (value, other))
        assert ours < bound * max(theirs, 4e-7)


def decoder(ch):
    torch.manual_seed(0)
    return Decoder(
        ch=ch, out_ch=3, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[], resolution=16, z_channels=3
    ).eval()


@pytest.mark.parametrize(
    ("dtype", "wide", "narrow", "upsampling"),
    [
        (torch.float32, WinogradConv, WinogradConv, WinogradUpsample),
        (torch.bfloat16, WinogradConv, DirectConv, WinogradUpsample),
    ],
)
def test_few_channels_stay_with_the_direct_sum(dtype, wide, narrow, upsampling):
    network = decoder(128)
    accelerate_first_stage(network, dtype, processor=True)
    assert type(network.up[1].block[1].conv1) is wide
    assert type(network.up[0].block[1].conv1) is narrow
    assert type(network.conv_out) is DirectConv
    assert type(network.up[1].upsample) is upsampling
    network = decoder(32)
    accelerate_first_stage(network, dtype, processor=True)
    assert type(network.up[1].upsample) is FoldedUpsample


@pytest.mark.parametrize("processor", [True, False])
def test_a_frozen_decoder_decodes_the_same_and_an_unfrozen_one_trains(processor):
    network = decoder(128)
    names = set(network.state_dict())
    z = torch.randn(1, 3, 8, 8).requires_grad_()
    image = network(z)
    seed = torch.randn_like(image)
    expected = gradient_of(image, z, seed)
    image.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())
    network.requires_grad_(False).to(memory_format=torch.channels_last)
    for low_memory in (False, True):
        accelerate_first_stage(network, torch.float32, processor, low_memory=low_memory)
        assert set(network.state_dict()) == names
        found = network(channels_last(z))
        assert relative_error(found.detach(), image.detach()) < 1e-5
        assert relative_error(gradient_of(network(channels_last(z)), z, seed), expected) < 1e-5


def test_loading_freezes_the_decoder_alone():
    model = instantiate_from_config(CONFIG["model"]).eval().requires_grad_(False)
    accelerate(model, Arithmetic())
    frozen = {name for name, module in model.named_modules() if isinstance(module, FROZEN)}
    decoder = [name for name, _ in model.named_modules() if name.startswith("first_stage_model.decoder.")]
    last = ("conv1", "conv2", "conv_out", "up.1.upsample")
    assert frozen == {name for name in decoder if name.endswith(last)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_silu_behind_group_norm(dtype):
    torch.manual_seed(0)
    norm = GroupNorm(64).to(torch.promote_types(dtype, torch.float32)).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    x = channels_last(torch.randn(2, 64, 9, 12, dtype=torch.float64) + 3).to(dtype).requires_grad_()
    seed = channels_last(torch.randn(x.shape)).to(dtype)
    found = norm_silu(x, norm)
    gradient = gradient_of(found, x, seed)
    assert found.dtype == gradient.dtype == dtype
    assert found.grad_fn.name() == "_NormSiLUBackward"
    exact = F.silu(norm.double()(x.double()))
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert relative_error(found.detach().double(), exact.detach()) < tolerance
    assert relative_error(gradient.double(), gradient_of(exact, x, seed.double()).double()) < tolerance


def test_silu_behind_group_norm_can_be_differentiated_twice():
    norm = GroupNorm(32).double()
    x = channels_last(torch.randn(2, 32, 3, 3, dtype=torch.float64)).requires_grad_()
    norm.requires_grad_(False)
    assert torch.autograd.gradgradcheck(lambda x: norm_silu(channels_last(x), norm), x)


def test_a_frozen_convolution_of_few_channels_keeps_nothing():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(5, 7, 3, padding=1).double().requires_grad_(False)
    x = torch.randn(2, 5, 6, 9, dtype=torch.float64).requires_grad_()
    expected = conv(x)
    seed = torch.randn_like(expected)
    expected_gradient = gradient_of(expected, x, seed)
    become(conv, DirectConv)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = conv(x)
    assert not kept
    assert torch.equal(found, expected)
    assert relative_error(gradient_of(found, x, seed), expected_gradient) < 1e-13
