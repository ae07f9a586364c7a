"""The networks against outputs and gradients recorded from the published ones."""

import pytest
import torch
from torch.nn import functional as F

from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModelInterface
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import GroupNorm
from ldm.modules.encoders.modules import ClassEmbedder
from ldm.modules.quantize import VectorQuantizer
from tests.reference.recorded import HERE, fill_parameters, recorded, relative_error
from util.errors import UserError

UNETS = sorted(path.stem for path in HERE.glob("unet_*.npz"))


def input_gradient(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(out.square().sum(), x)[0]


def test_there_are_recorded_unets():
    assert len(UNETS) >= 6


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_unet(name, memory_format):
    arrays, case = recorded(name)
    model = fill_parameters(UNetModel(**case["params"]), case["weights_seed"]).to(memory_format=memory_format)
    x = arrays["input"].requires_grad_()
    extra = {key.removeprefix("in_"): value for key, value in arrays.items() if key.startswith("in_")}
    out = model(x, arrays["timesteps"], **extra)
    assert relative_error(out, arrays["output"]) < 1e-9
    assert relative_error(input_gradient(out, x), arrays["grad_of_sum_of_squares"]) < 1e-9


def autoencoder(name, cls):
    arrays, case = recorded(name)
    return arrays, fill_parameters(cls(**case["params"]), case["weights_seed"])


def test_vq_autoencoder():
    arrays, model = autoencoder("autoencoder_vq", VQModelInterface)
    assert relative_error(model.encode(arrays["image"]), arrays["latent"]) < 1e-9
    z = arrays["z"].requires_grad_()
    out = model.decode(z)
    assert relative_error(out, arrays["decoded"]) < 1e-9
    assert relative_error(input_gradient(out, z), arrays["grad_of_sum_of_squares"]) < 1e-9
    assert relative_error(model.decode(z, force_not_quantize=True), arrays["decoded_force_not_quantize"]) < 1e-9


def test_kl_autoencoder():
    arrays, model = autoencoder("autoencoder_kl", AutoencoderKL)
    code = model.encode(arrays["image"])
    assert relative_error(code.mean, arrays["mean"]) < 1e-9
    assert relative_error(code.std, arrays["std"]) < 1e-9
    assert torch.equal(code.mode(), code.mean)
    z = arrays["z"].requires_grad_()
    out = model.decode(z)
    assert relative_error(out, arrays["decoded"]) < 1e-9
    assert relative_error(input_gradient(out, z), arrays["grad_of_sum_of_squares"]) < 1e-9


def test_kl_samples_have_the_stated_mean_and_deviation():
    arrays, model = autoencoder("autoencoder_kl", AutoencoderKL)
    code = model.encode(arrays["image"][:1])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([code.sample(generator) for _ in range(2000)])
    assert ((draws.mean(0) - code.mean) / code.std).abs().max() < 5 / 2000**0.5
    assert (draws.std(0) / code.std - 1).abs().max() < 0.1


def test_quantiser_finds_the_nearest_entry_and_passes_the_gradient_through():
    arrays, model = autoencoder("autoencoder_vq", VQModelInterface)
    z = arrays["z"].requires_grad_()
    quantised, loss, (_, _, indices) = model.quantize(z)
    assert relative_error(quantised, arrays["quantised"]) < 1e-9
    assert indices.tolist() == arrays["codes"].flatten().tolist()
    weight = torch.randn(z.shape, dtype=z.dtype)
    assert torch.equal(torch.autograd.grad((quantised * weight).sum(), z, retain_graph=True)[0], weight)
    distance = F.mse_loss(arrays["quantised"], z)
    assert torch.allclose(loss, 1.25 * distance)


def test_quantiser_agrees_with_pairwise_distances_over_many_chunks():
    torch.manual_seed(0)
    quantiser = VectorQuantizer(37, 5).double()
    torch.nn.init.normal_(quantiser.embedding.weight)
    flat = torch.randn(1001, 5, dtype=torch.float64)
    assert torch.equal(quantiser.nearest(flat), torch.cdist(flat, quantiser.embedding.weight).argmin(1))


def test_code_search_keeps_single_precision_under_autocast():
    torch.manual_seed(0)
    quantiser = VectorQuantizer(512, 4)
    torch.nn.init.normal_(quantiser.embedding.weight)
    flat = torch.randn(400, 4)
    want = quantiser.nearest(flat)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantiser.nearest(flat), want)


def test_group_norm_takes_statistics_in_single_precision():
    torch.manual_seed(0)
    norm = GroupNorm(64)
    x = 3 * torch.randn(2, 64, 16, 16) + 20
    got = norm(x.bfloat16())
    assert got.dtype == torch.bfloat16
    # One rounding of the result: 2^-9 of its size.
    assert torch.allclose(got.float(), norm(x.bfloat16().float()), rtol=2**-8, atol=0)


def test_identity_first_stage():
    x = torch.randn(1, 3, 8, 8)
    stage = IdentityFirstStage()
    assert stage.encode(x) is x
    assert stage.decode(x) is x


def test_class_embedder_gives_one_context_token():
    embedder = ClassEmbedder(embed_dim=6, n_classes=4)
    out = embedder({"class_label": torch.tensor([3, 0])})
    assert torch.equal(out[:, 0], embedder.embedding.weight[[3, 0]])
    assert out.shape == (2, 1, 6)


def test_unet_wants_labels_exactly_when_it_has_classes():
    _, case = recorded("unet_class_label")
    x, t = torch.zeros(1, 3, 8, 8), torch.tensor([1])
    with pytest.raises(ValueError, match="num_classes"):
        UNetModel(**case["params"])(x, t)


def test_unknown_parameter_offers_the_nearest():
    _, case = recorded("unet_ffhq_like")
    with pytest.raises(UserError, match="num_res_blocks"):
        UNetModel(**case["params"], num_resblocks=2)
