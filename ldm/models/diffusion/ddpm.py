"""The latent diffusion model: noise schedule, UNet, first stage and conditioning stage in one module."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.arithmetic import hold_gradient_in_range
from ldm.models.autoencoder import DiagonalGaussian, VQModelInterface
from ldm.models.diffusion.passes import PassCounter
from ldm.modules.diffusionmodules.util import extract_into_tensor, make_beta_schedule
from ldm.modules.sizes import MAX_SIDE, check_channels
from ldm.util import instantiate_from_config, reject_unknown
from util.checks import real_number, whole_number
from util.errors import UserError

MAX_TIMESTEPS = 100_000
CONDITIONING_KEYS = (None, "concat", "crossattn", "adm")


class DiffusionWrapper(nn.Module):
    """The UNet together with the way its conditioning enters: a holder that gives tensors their published names."""

    def __init__(self, unet_config: Mapping[str, Any], conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            known = ", ".join(map(str, CONDITIONING_KEYS))
            raise UserError(f"unknown conditioning_key {conditioning_key!r}: one of {known}")
        self.conditioning_key = conditioning_key
        self.diffusion_model = instantiate_from_config(unet_config)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if self.conditioning_key is None or cond is None:
            return self.diffusion_model(x, t)
        if self.conditioning_key == "concat":
            return self.diffusion_model(torch.cat([x, cond], dim=1), t)
        if self.conditioning_key == "crossattn":
            return self.diffusion_model(x, t, context=cond)
        return self.diffusion_model(x, t, y=cond)


class LatentDiffusion(nn.Module):
    """A diffusion prior over the latents of a first stage (Rombach et al., 2022).

    Args:
        unet_config, first_stage_config, cond_stage_config: what `instantiate_from_config` builds.
        image_size, channels: side and channels of the latent.
        timesteps, beta_schedule, linear_start, linear_end, cosine_s: the forward process.
        conditioning_key: how conditioning enters the UNet: None, "concat", "crossattn" or "adm".
        scale_factor, scale_by_std: latents are the first stage's times ``scale_factor``; with ``scale_by_std`` the
            factor is a tensor that the checkpoint holds.
        use_ema: sample with the moving average of the weights (``model_loader`` reads it in their place). Off by
            default, as the published restoration code samples.
        training_only: keys of published YAML files that only training read; ignored.

    Attributes:
        half: the half-precision number format that the networks compute in (`ldm.arithmetic`); None: their weights'.
            What goes in and comes out is not rounded to it.
        passes: counts how often UNet and decoder run.
    """

    parameterization = "eps"
    half: torch.dtype | None = None

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any] | str = "__is_unconditional__",
        image_size: int = 64,
        channels: int = 3,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        conditioning_key: str | None = None,
        cond_stage_key: str = "image",
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        use_ema: bool = False,
        parameterization: str = "eps",
        **training_only: Any,
    ):
        super().__init__()
        reject_unknown(type(self), training_only)
        if parameterization != "eps":
            raise UserError(f"parameterization {parameterization!r} is not supported: the model must predict eps")
        self.image_size, self.channels = whole_number("image_size", image_size, 1, MAX_SIDE), channels
        check_channels(channels=channels)
        self.cond_stage_key, self.use_ema = cond_stage_key, use_ema
        self.num_timesteps = whole_number("timesteps", timesteps, 1, MAX_TIMESTEPS)
        self.passes = PassCounter()
        self.schedule = {
            "schedule": beta_schedule,
            "linear_start": linear_start,
            "linear_end": linear_end,
            "cosine_s": cosine_s,
        }
        if conditioning_key is None and cond_stage_config != "__is_unconditional__":
            conditioning_key = "crossattn"
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.cond_stage_model = instantiate_from_config(cond_stage_config)
        if cond_stage_config == "__is_first_stage__":
            # Not registered a second time: its tensors are the first stage's.
            object.__setattr__(self, "cond_stage_model", self.first_stage_model)
        self.scale_by_std = scale_by_std
        scale_factor = real_number("scale_factor", scale_factor, 0, above_low=True)
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(scale_factor))
        else:
            self.scale_factor = scale_factor
        self.register_schedule()

    def register_schedule(self, device: torch.device | str | None = None) -> None:
        """Compute the float32 schedule buffers, of shape (timesteps,), in NumPy's float64 (Ho et al., 2020).

        Called again with a device, it gives a model that was built on the meta device real buffers.
        """
        betas = make_beta_schedule(n_timestep=self.num_timesteps, **self.schedule)
        alphas = 1.0 - betas
        abar = np.cumprod(alphas)
        if not (abar > 0).all() or not (abar < 1).all():
            raise UserError(f"the noise schedule {self.schedule} gives no betas between 0 and 1")
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
    def resolution(self) -> int:
        """Side, in pixels, of the images that the prior was trained on."""
        return self.image_size * self.first_stage_model.downsampling

    @property
    def multiple(self) -> int:
        """What the sides of images must be multiples of: how often first stage and UNet halve them."""
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

    def _compute(self, network: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``network(x, ...)`` in the model's arithmetic; a tensor is given back in x's, contiguous."""
        with nullcontext() if self.half is None else torch.autocast(x.device.type, self.half):
            out = network(x, *args, **kwargs)
        return out.to(x.dtype).contiguous() if torch.is_tensor(out) else out

    @torch.no_grad()
    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Noise in the latents x_noisy (B, C, h, w) at timesteps t (B,), without gradient."""
        return self.differentiable_apply_model(x_noisy, t, cond)

    def differentiable_apply_model(self, x_noisy: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """As `apply_model`, with gradient."""
        x = x_noisy.view_as(x_noisy)  # without another use, as the next but one needs it
        noise = self._compute(self.model, x, t, cond)
        if self.half is torch.float16:
            hold_gradient_in_range(x, noise)
        self.passes.count_denoising(noise)
        return noise

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Diffuse latents to timesteps t (B,): ``sqrt(abar_t) x_start + sqrt(1 - abar_t) noise``."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return (
            extract_into_tensor(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
            + extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise
        )

    def encode_first_stage(self, x: Tensor) -> Tensor | DiagonalGaussian:
        """What the first stage makes of images (B, 3, H, W) in [-1, 1]: a latent, or a Gaussian over latents."""
        return self._compute(self.first_stage_model.encode, x)

    def get_first_stage_encoding(
        self, encoder_posterior: Tensor | DiagonalGaussian, generator: torch.Generator | None = None
    ) -> Tensor:
        """The diffusion model's latent of an encoding: times ``scale_factor``; of a Gaussian, a draw."""
        if isinstance(encoder_posterior, DiagonalGaussian):
            encoder_posterior = encoder_posterior.sample(generator)
        return self.scale_factor * encoder_posterior

    def encode_mode(self, x: Tensor) -> Tensor:
        """The diffusion model's latent (B, C, h, w) of images, without randomness: the mode times ``scale_factor``."""
        encoding = self.encode_first_stage(x)
        latent = self.scale_factor * (encoding.mode() if isinstance(encoding, DiagonalGaussian) else encoding)
        self.passes.count_encoding(latent)
        return latent

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of latents z (B, C, h, w), without gradient."""
        return self.differentiable_decode_first_stage(z, force_not_quantize)

    def differentiable_decode_first_stage(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """As `decode_first_stage`, with gradient; ``force_not_quantize`` leaves out a codebook."""
        z = z / self.scale_factor
        vq = isinstance(self.first_stage_model, VQModelInterface)
        options = {"force_not_quantize": force_not_quantize} if vq else {}
        image = self._compute(self.first_stage_model.decode, z, **options)
        if self.half is torch.float16:
            hold_gradient_in_range(z, image)
        self.passes.count_decoding(image)
        return image

    def get_learned_conditioning(self, c: Any) -> Tensor:
        """The conditioning that `apply_model` takes, of what the conditioning stage takes (class labels, say).

        Raises:
            UserError: the model is unconditional.
        """
        if self.cond_stage_model is None:
            raise UserError("this model is unconditional: it takes no class label")
        return self.cond_stage_model(c)
