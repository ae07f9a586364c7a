"""Functions that are computed again for their gradient: the same numbers, and only their inputs kept."""

import pytest
import torch

from ldm.modules.diffusionmodules.model import AttnBlock, Conv3x3, Decoder, ResnetBlock, Upsample
from ldm.modules.recompute import run
from tests.reference.recorded import relative_error


def products(x, y):
    return (x.sin() * y.exp()).cos() * x


def inputs():
    torch.manual_seed(0)
    return [torch.randn(3, 4, dtype=torch.float64).requires_grad_() for _ in range(2)]


def keeping(function):
    """What a function returns, and the tensors that it keeps for its gradient."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        return function(), kept


def test_the_inputs_are_kept_and_nothing_else():
    x, y = inputs()
    out, kept = keeping(lambda: run(products, x, y, recompute=True))
    assert [id(each) for each in kept] == [id(x), id(y)]
    expected, more = keeping(lambda: run(products, x, y, recompute=False))
    assert len(more) > 2
    assert torch.equal(out, expected)
    seed = torch.randn_like(out)
    for _ in range(2):  # a kept graph can be used again
        gradients = (torch.autograd.grad(each, (x, y), seed, retain_graph=True) for each in (out, expected))
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_can_be_nested_and_differentiated_twice():
    def nested(x, y):
        return run(products, run(products, x, y, recompute=True), y, recompute=True) + y

    x, y = inputs()
    assert torch.autograd.gradcheck(lambda x, y: run(nested, x, y, recompute=True), (x, y))
    assert torch.autograd.gradgradcheck(lambda x, y: run(nested, x, y, recompute=True), (x, y))


def test_without_a_gradient_it_is_computed_once():
    calls = []
    x, y = inputs()
    with torch.no_grad():
        run(lambda *each: calls.append(1) or products(*each), x, y, recompute=True)
    assert not run(products, x.detach(), y.detach(), recompute=True).requires_grad
    assert len(calls) == 1


@pytest.mark.parametrize("card", [False, True])
def test_between_blocks_of_a_frozen_decoder_only_their_inputs_are_kept(monkeypatch, card):
    if card:  # what a processor's layers do differently is decided by these two
        monkeypatch.setattr("ldm.modules.diffusionmodules.model.pays", lambda *_, **__: False)
        monkeypatch.setattr("ldm.modules.norm_silu._NormSiLU", None)
    torch.manual_seed(0)
    network = Decoder(
        ch=32, out_ch=3, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[16], resolution=16, z_channels=3
    )
    network.eval().double().requires_grad_(False)
    z = torch.randn(1, 3, 8, 8, dtype=torch.float64).requires_grad_()
    expected = network(z)
    seed = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, z, seed)
    for module in network.modules():
        if isinstance(module, Conv3x3 | Upsample):
            module.freeze(torch.float64)
            if card and isinstance(module, Upsample):
                module.folded = None
    network.recompute(activations=True, blocks=True)
    found, kept = keeping(lambda: network(z))
    assert relative_error(found.detach(), expected.detach()) < 1e-12
    assert relative_error(torch.autograd.grad(found, z, seed)[0], gradient) < 1e-12
    blocks = sum(isinstance(module, ResnetBlock | AttnBlock) for module in network.modules())
    shortcuts = sum(hasattr(module, "nin_shortcut") for module in network.modules())
    activations = {each.data_ptr() for each in kept if each.ndim == 4 and each.shape[0] == 1}
    # One for each block, the first convolution's input and the last normalisation's.
    assert len(activations) <= blocks + 2
    assert len(kept) <= blocks + 2 + 2 * shortcuts + 2, [tuple(each.shape) for each in kept]
