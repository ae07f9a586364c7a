"""Faster classes of a first stage's layers against the classes that they are derived from."""

import pytest
import torch
from torch.nn import functional as F

from ldm.acceleration import layers
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder, Upsample
from tests.reference.recorded import relative_error


def test_folded_upsampling_is_the_same_map():
    torch.manual_seed(0)
    layer = Upsample(5).double().requires_grad_(False)
    x = torch.randn(2, 5, 7, 4, dtype=torch.float64, requires_grad=True)
    plain = layer(x)
    weight = torch.randn_like(plain)
    (expected,) = torch.autograd.grad((plain * weight).sum(), x)
    names = list(layer.state_dict())
    layers.become(layer, layers.FoldedUpsample).fold()
    assert list(layer.state_dict()) == names
    assert relative_error(layer(x), plain) < 1e-14
    assert relative_error(torch.autograd.grad((layer(x) * weight).sum(), x)[0], expected) < 1e-14


@pytest.mark.parametrize("positions", [9, layers.QUERIES_AT_ONCE + 70])
def test_attention_of_one_head_is_torchs(positions):
    torch.manual_seed(0)
    q, k, v, weight = torch.randn(4, 2, positions, 3, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    block = layers.become(AttnBlock(32), layers.ProductAttention)
    found, expected = block.attend(*inputs), F.scaled_dot_product_attention(*inputs)
    assert relative_error(found, expected) < 1e-12
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert relative_error(one, other) < 1e-12


def test_images_that_occupy_a_processor_are_decoded_one_by_one(monkeypatch):
    torch.manual_seed(0)
    network = Decoder(
        ch=32, out_ch=3, ch_mult=[1, 1], num_res_blocks=1, attn_resolutions=[], resolution=8, z_channels=3
    ).double()
    z = torch.randn(3, 3, 4, 5, dtype=torch.float64).requires_grad_()
    together = network(z)
    weight = torch.randn_like(together)
    (expected,) = torch.autograd.grad((together * weight).sum(), z)
    layers.become(network, layers.OneByOneDecoder)
    sizes = []
    network.conv_in.register_forward_hook(lambda _, inputs, out: sizes.append(len(out)))
    for alone, seen in ((21, [3]), (20, [1, 1, 1])):
        monkeypatch.setattr("ldm.acceleration.layers.ALONE", alone)
        sizes.clear()
        found = network(z)
        assert sizes == seen
        assert relative_error(found, together) < 1e-13
        assert relative_error(torch.autograd.grad((found * weight).sum(), z)[0], expected) < 1e-13
