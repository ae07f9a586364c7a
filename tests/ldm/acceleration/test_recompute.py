"""A decoder that computes again instead of keeping: the same numbers, and little kept."""

import pytest
import torch

from ldm.acceleration.first_stage import accelerate_first_stage
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder, ResnetBlock
from tests.reference.recorded import relative_error


def keeping(function):
    """A function's result, and the tensors that it keeps for its gradient."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        return function(), kept


@pytest.mark.parametrize("processor", [True, False])
def test_between_blocks_of_a_frozen_decoder_only_their_inputs_are_kept(processor):
    torch.manual_seed(0)
    network = Decoder(
        ch=32, out_ch=3, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[16], resolution=16, z_channels=3
    )
    network.eval().double().requires_grad_(False).to(memory_format=torch.channels_last)
    z = torch.randn(1, 3, 8, 8, dtype=torch.float64).requires_grad_()
    expected = network(z)
    seed = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, z, seed)
    accelerate_first_stage(network, torch.float64, processor, low_memory=True)
    found, kept = keeping(lambda: network(z))
    assert relative_error(found.detach(), expected.detach()) < 1e-12
    assert relative_error(torch.autograd.grad(found, z, seed)[0], gradient) < 1e-12
    blocks = sum(isinstance(module, ResnetBlock | AttnBlock) for module in network.modules())
    shortcuts = sum(isinstance(module, torch.nn.Conv2d) for name, module in network.named_modules() if "nin_" in name)
    activations = {each.data_ptr() for each in kept if each.ndim == 4 and each.shape[0] == 1}
    # One for each block, the first convolution's input and the last normalisation's.
    assert len(activations) <= blocks + 2
    assert len(kept) <= blocks + 2 + 2 * shortcuts + 2, [tuple(each.shape) for each in kept]
