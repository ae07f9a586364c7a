"""The latent diffusion model: noise schedule, UNet, first stage and conditioning stage in one module."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ldm.models.autoencoder import AutoencoderKL, DiagonalGaussian, IdentityFirstStage, VQModelInterface
from ldm.models.diffusion.evaluations import EvaluationCounter
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import extract_into_tensor, make_beta_schedule
from ldm.modules.encoders.modules import ClassEmbedder, FrozenCLIPEmbedder
from ldm.modules.sizes import Channels, Side
from ldm.util import instantiate_from_config, read_params
from util.errors import UserError
from util.settings import Flag, Number, Positive, Settings, Text, whole

FIRST_STAGES = (VQModelInterface, AutoencoderKL, IdentityFirstStage)


def compute_plainly(network: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``network(x, ...)`` in its own arithmetic."""
    return network(x, *args, **kwargs)


def _part(key: str, config: Mapping[str, Any] | str, *classes: type[nn.Module]) -> Any:
    """Build a part of the model, which must be of one of these classes."""
    part = instantiate_from_config(config)
    if not isinstance(part, classes):
        found = config if isinstance(config, str) else config["target"]
        names = " or ".join(f"{own.__module__}.{own.__name__}" for own in classes)
        raise UserError(f"model configuration: {key} cannot be {found}: expected {names}")
    return part


class DiffusionWrapper(nn.Module):
    """The UNet together with the way its conditioning enters: a holder that gives tensors their published names."""

    def __init__(self, unet_config: Mapping[str, Any], conditioning_key: str | None):
        super().__init__()
        self.conditioning_key = conditioning_key
        self.diffusion_model = _part("unet_config", unet_config, UNetModel)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if self.conditioning_key is None or cond is None:
            return self.diffusion_model(x, t)
        if self.conditioning_key == "concat":
            return self.diffusion_model(torch.cat([x, cond], dim=1), t)
        if self.conditioning_key == "crossattn":
            return self.diffusion_model(x, t, context=cond)
        return self.diffusion_model(x, t, y=cond)


class LatentDiffusionSettings(Settings):
    """The shape of a latent diffusion model.

    Attributes:
        unet_config, first_stage_config, cond_stage_config: what `instantiate_from_config` builds.
        image_size, channels: side and channels of the latent.
        timesteps, beta_schedule, linear_start, linear_end, cosine_s: the forward process.
        conditioning_key: how conditioning enters the UNet: "concat", "crossattn" or "adm". None is, for a model with a
            condition, "crossattn" of classes and texts, and of other conditions as `concat_mode` says.
        concat_mode: with no key, other conditions are joined to the latent ("concat"), not attended to ("crossattn").
        parameterization: what the UNet predicts: the noise ("eps"), the clean latent ("x0"), or "v", which is
            ``sqrt(abar) eps - sqrt(1 - abar) z0`` (Salimans and Ho, 2022).
        scale_factor, shift_factor: latents are ``scale_factor (z - shift_factor)`` of the first stage's z.
        scale_by_std: ``scale_factor`` is a tensor that the checkpoint holds.
        use_ema: sample with the moving average of the weights (``model_loader`` reads it in their place). Off by
            default, as the published restoration code samples.
    """

    unet_config: Any
    first_stage_config: Any
    cond_stage_config: Any = "__is_unconditional__"
    image_size: Side = 64
    channels: Channels = 3
    timesteps: Annotated[int, whole(1, 100_000)] = 1000
    beta_schedule: Text = "linear"
    linear_start: Number = 1e-4
    linear_end: Number = 2e-2
    cosine_s: Number = 8e-3
    conditioning_key: Literal["concat", "crossattn", "adm"] | None = None
    concat_mode: Flag = True
    cond_stage_key: str = "image"
    parameterization: Literal["eps", "v", "x0"] = "eps"
    scale_factor: Positive = 1.0
    shift_factor: Number = 0.0
    scale_by_std: Flag = False
    use_ema: Flag = False


class LatentDiffusion(nn.Module):
    """A diffusion prior over the latents of a first stage (Rombach et al., 2022).

    Keywords are those of `LatentDiffusionSettings`.

    Attributes:
        compute: runs a network: ``compute(network, x, ...)`` is ``network(x, ...)`` in a number format of its own where
            `ldm.acceleration` sets one.
        evaluations: counts how often the networks run.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    scale_factor: float | Tensor

    def __init__(self, **params: Any):
        super().__init__()
        settings = read_params(LatentDiffusionSettings, params, type(self))
        self.settings = settings
        self.image_size, self.channels, self.use_ema = settings.image_size, settings.channels, settings.use_ema
        self.num_timesteps, self.parameterization = settings.timesteps, settings.parameterization
        self.compute: Callable[..., Any] = compute_plainly
        self.evaluations = EvaluationCounter()
        self.model = DiffusionWrapper(settings.unet_config, settings.conditioning_key)
        self.first_stage_model = _part("first_stage_config", settings.first_stage_config, *FIRST_STAGES)
        self.cond_stage_model = instantiate_from_config(settings.cond_stage_config)
        if settings.cond_stage_config == "__is_first_stage__":
            # Not registered a second time: its tensors are the first stage's.
            object.__setattr__(self, "cond_stage_model", self.first_stage_model)
        if settings.conditioning_key is None and self.cond_stage_model is not None:
            attends = isinstance(self.cond_stage_model, ClassEmbedder | FrozenCLIPEmbedder) or not settings.concat_mode
            self.model.conditioning_key = "crossattn" if attends else "concat"
        self.shift_factor = settings.shift_factor
        if settings.scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(settings.scale_factor))
        else:
            self.scale_factor = settings.scale_factor
        self.register_schedule()

    def register_schedule(self, device: torch.device | str | None = None, own: Tensor | None = None) -> None:
        """Compute the float32 schedule buffers, of shape (timesteps,), in NumPy's float64 (Ho et al., 2020).

        Called again with a device, it gives a model that was built on the meta device real buffers.

        Args:
            device: where they go.
            own: betas in place of the settings', (timesteps,).

        Raises:
            UserError: they are no schedule.
        """
        settings = self.settings
        schedule = settings.beta_schedule, settings.timesteps, settings.linear_start, settings.linear_end
        betas = make_beta_schedule(*schedule, settings.cosine_s) if own is None else own.double().numpy(force=True)
        alphas = 1.0 - betas
        abar = np.cumprod(alphas)
        if not (abar > 0).all() or not (abar < 1).all():
            name, _, start, end = schedule
            which = f"{name!r} from {start} to {end}" if own is None else "of the checkpoint"
            raise UserError(f"the noise schedule {which} gives no betas between 0 and 1")
        abar_prev = np.append(1.0, abar[:-1])
        posterior_variance = betas * (1.0 - abar_prev) / (1.0 - abar)
        buffers = {
            "betas": betas,
            "alphas_cumprod": abar,
            "alphas_cumprod_prev": abar_prev,
            "sqrt_alphas_cumprod": np.sqrt(abar),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - abar),
            "log_one_minus_alphas_cumprod": np.log(1.0 - abar),
            "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / abar),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / abar - 1),
            "posterior_variance": posterior_variance,
            "posterior_log_variance_clipped": np.log(np.maximum(posterior_variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(abar_prev) / (1.0 - abar),
            "posterior_mean_coef2": (1.0 - abar_prev) * np.sqrt(alphas) / (1.0 - abar),
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32, device=device))

    @property
    def device(self) -> torch.device:
        """Where the model lives; tensors given to it must be there too."""
        return self.betas.device

    @property
    def image_channels(self) -> int:
        """Channels of the images: 3 for colour, 1 for grey."""
        return getattr(self.first_stage_model, "image_channels", self.channels)

    @property
    def resolution(self) -> int:
        """Side, in pixels, of the images that the prior was trained on."""
        return self.image_size * self.first_stage_model.downsampling

    @property
    def multiple(self) -> int:
        """The number that divides images' sides: first stage and UNet halve them so often."""
        return self.first_stage_model.downsampling * self.model.diffusion_model.downsampling

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the least (height, width) that the model takes and that are not smaller than these."""
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, h, w) of the latent of an image.

        Raises:
            UserError: first stage and UNet cannot halve these sides as often as they do; the message says which do.
        """
        factor = self.first_stage_model.downsampling
        multiple = self.multiple
        if height % multiple or width % multiple:
            raise UserError(
                f"{width}x{height} (width x height) does not fit the model: it takes sides that are multiples of "
                f"{multiple}, and was trained on {self.resolution}x{self.resolution}"
            )
        return self.channels, height // factor, width // factor

    def _run(self, network: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``network(x, ...)`` as the model computes; a tensor is given back contiguous."""
        out = self.compute(network, x, *args, **kwargs)
        return out.contiguous() if torch.is_tensor(out) else out

    @torch.no_grad()
    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Noise in the latents x_noisy (B, C, h, w) at timesteps t (B,), without gradient."""
        return self.differentiable_apply_model(x_noisy, t, cond)

    def differentiable_apply_model(self, x_noisy: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """As `apply_model`, with gradient."""
        noise = self._noise(self._run(self.model, x_noisy, t, cond), x_noisy, t)
        self.evaluations.count_denoising(noise)
        return noise

    def _noise(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise in x at timesteps t that follows from what the UNet predicts."""
        if self.parameterization == "eps":
            return prediction
        alpha, sigma = self._level(t, x)
        if self.parameterization == "v":
            return alpha * prediction + sigma * x
        return (x - alpha * prediction) / sigma

    def _level(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``sqrt(abar)`` and ``sqrt(1 - abar)`` at timesteps t (B,), to broadcast against x.

        Between two timesteps ``log(abar / (1 - abar))`` is interpolated linearly, as `LevelTable` has it.
        """
        before = t.long()
        log_snr = torch.logit(self.alphas_cumprod.to(x.dtype))
        after, share = (before + 1).clamp(max=len(log_snr) - 1), (t - before).to(x.dtype)
        at = (1 - share) * log_snr[before] + share * log_snr[after]
        at = at.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.sigmoid(at).sqrt(), torch.sigmoid(-at).sqrt()

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Diffuse latents to timesteps t (B,): ``sqrt(abar_t) x_start + sqrt(1 - abar_t) noise``."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return (
            extract_into_tensor(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
            + extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise
        )

    def encode_first_stage(self, x: Tensor) -> Tensor | DiagonalGaussian:
        """Encode images (B, C, H, W) in [-1, 1]: a latent, or a Gaussian over latents."""
        return self._run(self.first_stage_model.encode, x)

    def get_first_stage_encoding(
        self, encoder_posterior: Tensor | DiagonalGaussian, generator: torch.Generator | None = None
    ) -> Tensor:
        """The diffusion model's latent of an encoding, shifted and scaled; of a Gaussian, of a draw."""
        if isinstance(encoder_posterior, DiagonalGaussian):
            encoder_posterior = encoder_posterior.sample(generator)
        return self._scaled(encoder_posterior)

    def encode_mode(self, x: Tensor) -> Tensor:
        """The diffusion model's latent (B, C, h, w) of images, without randomness: of a Gaussian, of its mode."""
        encoding = self.encode_first_stage(x)
        latent = self._scaled(encoding.mode() if isinstance(encoding, DiagonalGaussian) else encoding)
        self.evaluations.count_encoding(latent)
        return latent

    def _scaled(self, z: Tensor) -> Tensor:
        return self.scale_factor * (z - self.shift_factor if self.shift_factor else z)

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Images, about [-1, 1], of latents z (B, C, h, w), without gradient."""
        return self.differentiable_decode_first_stage(z, force_not_quantize)

    def differentiable_decode_first_stage(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """As `decode_first_stage`, with gradient; ``force_not_quantize`` leaves out a codebook."""
        z = z / self.scale_factor
        z = z + self.shift_factor if self.shift_factor else z
        vq = isinstance(self.first_stage_model, VQModelInterface)
        options = {"force_not_quantize": force_not_quantize} if vq else {}
        image = self._run(self.first_stage_model.decode, z, **options)
        self.evaluations.count_decoding(image)
        return image

    def get_learned_conditioning(self, c: Any) -> Tensor:
        """The conditioning that `apply_model` takes, of what the conditioning stage takes: class labels, or prompts.

        Of a picture (B, C, H, W), where that stage is an autoencoder: the encoding, or the mode of a Gaussian.

        Raises:
            UserError: the model is unconditional.
        """
        if self.cond_stage_model is None:
            raise UserError("this model is unconditional: it takes no class label and no prompt")
        if not isinstance(self.cond_stage_model, FIRST_STAGES):
            return self.cond_stage_model(c)
        encoding = self._run(self.cond_stage_model.encode, c)
        return encoding.mode() if isinstance(encoding, DiagonalGaussian) else encoding
