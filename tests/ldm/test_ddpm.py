"""LatentDiffusion against closed forms."""

import copy

import numpy as np
import pytest
import torch

from ldm.models.autoencoder import DiagonalGaussian
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.levels import LevelTable
from ldm.util import instantiate_from_config
from tests.reference.recorded import recorded
from tests.tiny import CONFIG, family
from util.errors import UserError


def params(**changes):
    return {**copy.deepcopy(CONFIG["model"]["params"]), **changes}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return instantiate_from_config(CONFIG["model"]).eval()


def test_schedule_is_the_cumulative_product_in_single_precision(model):
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    assert model.alphas_cumprod.dtype == torch.float32
    assert np.array_equal(model.alphas_cumprod.numpy(), np.cumprod(1 - betas).astype(np.float32))


def test_posterior_buffers_are_those_of_the_gaussian_product(model):
    """q(z_{t-1} | z_t, z_0) from Bayes' rule on two Gaussians, against the buffers."""
    t = 400
    beta, abar, abar_prev = (
        getattr(model, name)[t].double() for name in ("betas", "alphas_cumprod", "alphas_cumprod_prev")
    )
    precision = (1 - beta) / beta + 1 / (1 - abar_prev)
    assert torch.isclose(model.posterior_variance[t].double(), 1 / precision, rtol=1e-4)
    assert torch.isclose(
        model.posterior_mean_coef1[t].double(), abar_prev.sqrt() / (1 - abar_prev) / precision, rtol=1e-4
    )
    assert torch.isclose(model.posterior_mean_coef2[t].double(), (1 - beta).sqrt() / beta / precision, rtol=1e-4)
    assert torch.isclose(abar, abar_prev * (1 - beta), rtol=1e-5)


def test_diffused_latents_have_the_marginal_mean_and_variance(model):
    z, t = torch.full((20000, 1, 1, 1), 2.0), torch.full((20000,), 300)
    torch.manual_seed(1)
    noisy = model.q_sample(z, t)
    abar = model.alphas_cumprod[300]
    assert abs(noisy.mean() - 2 * abar.sqrt()) < 0.03
    assert abs(noisy.var() - (1 - abar)) < 0.03


def test_a_schedule_can_be_computed_again_for_a_model_built_on_meta():
    with torch.device("meta"):
        model = instantiate_from_config(CONFIG["model"])
    assert model.betas.is_meta
    model.register_schedule("cpu")
    assert not any(buffer.is_meta for name, buffer in model.named_buffers())


def test_apply_model_keeps_no_graph_and_decoding_does_on_request(model):
    z = torch.randn(1, 3, 16, 16, requires_grad=True)
    assert not model.apply_model(z, torch.tensor([5])).requires_grad
    assert not model.decode_first_stage(z).requires_grad
    assert model.differentiable_decode_first_stage(z).requires_grad


def test_scale_factor_cancels_between_encoding_and_decoding():
    torch.manual_seed(0)
    plain = LatentDiffusion(**params()).eval()
    scaled = LatentDiffusion(**params(scale_factor=0.25)).eval()
    scaled.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.allclose(scaled.encode_mode(image), 0.25 * plain.encode_mode(image))
    assert torch.allclose(
        scaled.decode_first_stage(scaled.encode_mode(image)),
        plain.decode_first_stage(plain.encode_mode(image)),
        atol=1e-5,
    )


def test_scale_by_std_puts_the_factor_into_the_checkpoint():
    model = LatentDiffusion(**params(scale_by_std=True))
    assert model.state_dict()["scale_factor"].shape == ()


def test_a_kl_first_stage_encodes_by_its_mode_or_a_draw():
    _, case = recorded("autoencoder_kl")
    first_stage = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": case["params"]}
    model = LatentDiffusion(**params(first_stage_config=first_stage, scale_factor=0.5)).eval()
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        posterior = model.encode_first_stage(image)
        assert isinstance(posterior, DiagonalGaussian)
        assert torch.equal(model.encode_mode(image), 0.5 * posterior.mean)
        generator = torch.Generator().manual_seed(3)
        draw = model.get_first_stage_encoding(posterior, generator)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(draw, 0.5 * (posterior.mean + posterior.std * noise))


def test_conditioning_enters_by_its_key():
    _, case = recorded("unet_cin_like")
    unet = {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {**case["params"], "context_dim": 8},
    }
    classes = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": 8, "n_classes": 3}}
    torch.manual_seed(0)
    model = LatentDiffusion(**params(unet_config=unet, cond_stage_config=classes)).eval()
    for module in model.model.modules():  # residual branches start at zero
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter, std=0.1)
    z, t = torch.randn(1, 3, 8, 8), torch.tensor([10])
    contexts = [model.get_learned_conditioning({"class_label": torch.tensor([label])}) for label in (0, 1)]
    outs = [model.apply_model(z, t, context) for context in contexts]
    assert not torch.allclose(outs[0], outs[1])
    assert torch.equal(outs[0], model.model.diffusion_model(z, t, context=contexts[0]))


UNET = CONFIG["model"]["params"]["unet_config"]


def conditioned(stage, **changes):
    """A model whose UNet takes the latent and, joined to it, a picture's three channels."""
    unet = {**UNET, "params": {**UNET["params"], "in_channels": 6}}
    torch.manual_seed(0)
    return LatentDiffusion(**params(unet_config=unet, cond_stage_config=stage, **changes)).eval()


@pytest.mark.parametrize("key", [{}, {"concat_mode": True}, {"conditioning_key": "concat", "concat_mode": False}])
def test_a_picture_as_a_condition_is_joined_to_the_latent(key):
    model = conditioned("__is_first_stage__", **key)
    image, z, t = torch.rand(1, 3, 32, 32) * 2 - 1, torch.randn(1, 3, 16, 16), torch.tensor([10])
    c = model.get_learned_conditioning(image)
    assert torch.equal(c, model.first_stage_model.encode(image))
    assert torch.equal(model.apply_model(z, t, c), model.model.diffusion_model(torch.cat([z, c], 1), t))


def test_a_condition_is_attended_to_without_concat_mode():
    assert conditioned({"target": "torch.nn.Identity"}, concat_mode=False).model.conditioning_key == "crossattn"
    assert conditioned({"target": "torch.nn.Identity"}).model.conditioning_key == "concat"
    assert LatentDiffusion(**params()).model.conditioning_key is None


def test_an_encoding_with_a_deviation_conditions_by_its_mode():
    first = CONFIG["model"]["params"]["first_stage_config"]
    coder = {"embed_dim": 3, "ddconfig": {**first["params"]["ddconfig"], "double_z": True}}
    stage = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": coder}
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    model = conditioned(stage)
    assert torch.equal(model.get_learned_conditioning(image), model.cond_stage_model.encode(image).mode())


def test_mistakes_are_told():
    with pytest.raises(UserError, match="unconditional"):
        LatentDiffusion(**params()).get_learned_conditioning({})
    with pytest.raises(UserError, match="eps"):
        LatentDiffusion(**params(parameterization="score"))
    with pytest.raises(UserError, match="conditioning_key"):
        LatentDiffusion(**params(conditioning_key="cross"))
    with pytest.raises(UserError, match="beta_schedule"):
        LatentDiffusion(**params(beta_schedule="lineal"))
    with pytest.raises(UserError, match="linear_start"):
        LatentDiffusion(**params(linear_strat=0.1))


class Stub(torch.nn.Module):
    """A network that knows the noise and the clean latent, and gives what is asked of it."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def forward(self, x, t, cond=None):
        return self.prediction


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
@pytest.mark.parametrize("timestep", [0, 400, 999, 400.25])
def test_the_noise_follows_from_each_prediction(parameterization, timestep):
    network = LatentDiffusion(**params(parameterization=parameterization)).double()
    generator = torch.Generator().manual_seed(0)
    z0, noise = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64, generator=generator)
    level = LevelTable.of(network.alphas_cumprod).at(timestep)
    predictions = {"eps": noise, "x0": z0, "v": level.alpha * noise - level.sigma * z0}
    network.model = Stub(predictions[parameterization])
    found = network.apply_model(level.alpha * z0 + level.sigma * noise, torch.full((2,), timestep))
    assert torch.allclose(found, noise, atol=1e-5 if timestep == 0 else 1e-9)


def test_latents_are_shifted_and_scaled():
    torch.manual_seed(0)
    plain = LatentDiffusion(**params()).eval()
    moved = LatentDiffusion(**params(scale_factor=0.25, shift_factor=0.5)).eval()
    moved.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    latent = moved.encode_mode(image)
    assert torch.allclose(latent, 0.25 * (plain.encode_mode(image) - 0.5))
    expected = plain.decode_first_stage(plain.encode_mode(image), force_not_quantize=True)
    assert torch.allclose(moved.decode_first_stage(latent, force_not_quantize=True), expected, atol=1e-5)


def test_images_of_one_channel():
    grey = family(first_stage=None)
    shape = grey["model"]["params"]["first_stage_config"]["params"]["ddconfig"]
    shape.update(in_channels=1, out_ch=1)
    network = instantiate_from_config(grey["model"]).eval()
    assert network.image_channels == 1
    image = torch.rand(2, 1, 32, 32)
    assert network.decode_first_stage(network.encode_mode(image)).shape == image.shape
