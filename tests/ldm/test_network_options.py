"""Options that networks of other trainers than CompVis need."""

import pytest
import torch
from torch.nn import functional as F

from ldm.models.autoencoder import AutoencoderKL, VQModelInterface
from ldm.modules.attention import AttentionBlock, SpatialTransformer
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder, Encoder
from ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel
from ldm.modules.diffusionmodules.util import GroupNorm, timestep_embedding
from util.errors import UserError

CODER = {"ch": 16, "ch_mult": [1, 1.5], "num_res_blocks": 1, "resolution": 16, "z_channels": 4, "norm_groups": 8}
UNET = {
    **{"image_size": 8, "in_channels": 1, "out_channels": 1, "model_channels": 16, "num_res_blocks": 1},
    **{"channel_mult": [1, 2], "num_head_channels": 8, "norm_groups": 8},
}


def of(kind, network):
    return [module for module in network.modules() if isinstance(module, kind)]


def test_norms_have_the_groups_and_eps_asked_for():
    for network in (Encoder(**CODER, norm_eps=1e-3), Decoder(**CODER, norm_eps=1e-3), UNetModel(**UNET, norm_eps=1e-3)):
        assert {(norm.num_groups, norm.eps) for norm in of(GroupNorm, network)} == {(8, 1e-3)}


def test_factors_need_not_be_whole():
    assert Encoder(**CODER).conv_out.in_channels == 24
    assert Decoder(**CODER).conv_in.out_channels == 24


def test_attention_by_level_is_that_by_resolution():
    by_level = UNetModel(**UNET, attention_levels=[False, True])
    by_resolution = UNetModel(**UNET, attention_resolutions=[2])
    assert list(by_level.state_dict()) == list(by_resolution.state_dict())
    assert list(Encoder(**CODER, attention_levels=[True, False]).state_dict()) == list(
        Encoder(**CODER, attn_resolutions=[16]).state_dict()
    )
    with pytest.raises(ValueError, match="attention_levels has 1 entries for 2 levels"):
        UNetModel(**UNET, attention_levels=[True])


def test_heads_of_each_level():
    network = UNetModel(**{**UNET, "num_head_channels": [4, 16]}, attention_levels=[True, True])
    assert [block.num_heads for block in of(AttentionBlock, network)] == [4, 2, 2, 2, 2, 4, 4]
    transformer = {"use_spatial_transformer": True, "context_dim": 6, "num_head_channels": -1, "num_heads": 4}
    network = UNetModel(**{**UNET, **transformer}, attention_levels=[True, False])
    heads = [block.transformer_blocks[0].attn2.heads for block in of(SpatialTransformer, network)]
    assert heads == [4] * 4
    with pytest.raises(UserError, match="16 channels cannot have 5 attention heads"):
        UNetModel(**{**UNET, "num_head_channels": -1, "num_heads": 5}, attention_levels=[True, False])


def test_the_middle_may_lack_attention_or_its_norm():
    assert not of(AttentionBlock, UNetModel(**UNET, mid_attention=False))
    assert not of(GroupNorm, UNetModel(**UNET, mid_attention_norm=False).middle_block[1])
    assert not of(AttnBlock, Decoder(**CODER, mid_attention=False))


def test_downsampling_without_padding_is_behind_a_row_and_a_column_of_zeros():
    layer = Downsample(2, padding=0)
    x = torch.randn(1, 2, 6, 6)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), layer.op.weight, layer.op.bias, stride=2)
    assert torch.equal(layer(x), expected)
    assert of(Downsample, UNetModel(**UNET, downsample_padding=0))[0].op.padding == (0, 0)


def test_resolution_changes_without_convolutions():
    network = UNetModel(**UNET, conv_resample=False)
    assert not [name for name in network.state_dict() if ".op." in name or "conv" in name]
    assert network(torch.randn(2, 1, 8, 8), torch.tensor([1, 2])).shape == (2, 1, 8, 8)
    image = torch.randn(1, 3, 16, 16)
    features = Encoder(**CODER, resamp_with_conv=False, double_z=False)(image)
    assert features.shape == (1, 4, 8, 8)
    assert Decoder(**CODER, resamp_with_conv=False)(features).shape == image.shape


def test_the_embeddings_frequencies_may_be_shifted():
    t, half = torch.tensor([3.0, 700.0]), 4
    angles = t[:, None] * 10000 ** (-torch.arange(half) / (half - 1))
    assert torch.allclose(timestep_embedding(t, 2 * half, shift=1), torch.cat([angles.cos(), angles.sin()], 1))


def test_an_autoencoder_may_lack_its_1x1_convolutions():
    without = {"use_quant_conv": False, "use_post_quant_conv": False}
    model = AutoencoderKL(embed_dim=4, ddconfig=CODER, **without)
    assert not [name for name in model.state_dict() if "quant" in name]
    image = torch.randn(1, 3, 16, 16)
    assert model.decode(model.encode(image).mode()).shape == image.shape
    with pytest.raises(UserError, match="embed_dim = z_channels"):
        VQModelInterface(embed_dim=3, n_embed=8, ddconfig={**CODER, "double_z": False}, **without)
