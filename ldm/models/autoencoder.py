"""First stages: the autoencoders whose latents the diffusion model knows."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.quantize import VectorQuantizer
from ldm.modules.sizes import MAX_ENTRIES, check_channels
from ldm.util import reject_unknown
from util.checks import whole_number


class VQModelInterface(nn.Module):
    """Vector-quantised autoencoder, used as the published latent diffusion models do.

    Args:
        embed_dim: channels of the latent.
        n_embed: entries of the codebook.
        ddconfig: arguments of Encoder and Decoder.
        training_only: keys of published YAML files that only training read; ignored.
    """

    def __init__(self, embed_dim: int, n_embed: int, ddconfig: Mapping[str, Any], **training_only: Any):
        super().__init__()
        reject_unknown(type(self), training_only)
        check_channels(embed_dim=embed_dim)
        self.embed_dim, self.resolution = embed_dim, ddconfig["resolution"]
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.downsampling = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.quantize = VectorQuantizer(whole_number("n_embed", n_embed, 1, MAX_ENTRIES), embed_dim)
        self.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to latents (B, embed_dim, H/f, W/f), before quantisation."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Latents (B, embed_dim, h, w) to images (B, 3, f h, f w), quantised first unless told not to."""
        if not force_not_quantize:
            z = self.quantize(z)[0]
        return self.decoder(self.post_quant_conv(z))


class DiagonalGaussian:
    """The posterior of a KL autoencoder: ``parameters`` (B, 2C, h, w) hold the mean and the log-variance."""

    def __init__(self, parameters: Tensor):
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw (B, C, h, w); from torch's default stream where no generator is given."""
        noise = torch.randn(self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The most probable latent: the mean."""
        return self.mean


class AutoencoderKL(nn.Module):
    """Autoencoder with a Gaussian latent (Kingma and Welling, 2014); arguments as for VQModelInterface."""

    def __init__(self, embed_dim: int, ddconfig: Mapping[str, Any], **training_only: Any):
        super().__init__()
        reject_unknown(type(self), training_only)
        if not ddconfig["double_z"]:
            raise ValueError("AutoencoderKL needs ddconfig.double_z: true")
        check_channels(embed_dim=embed_dim)
        self.embed_dim, self.resolution = embed_dim, ddconfig["resolution"]
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.downsampling = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Images (B, 3, H, W) in [-1, 1] to the Gaussian over their latents."""
        # Its standard deviation is an exponential: not in half precision.
        return DiagonalGaussian(self.quant_conv(self.encoder(x)).to(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, embed_dim, h, w) to images (B, 3, f h, f w)."""
        return self.decoder(self.post_quant_conv(z))


class IdentityFirstStage(nn.Module):
    """No first stage: the diffusion model works on pixels."""

    downsampling = 1

    def __init__(self, vq_interface: bool = False, **training_only: Any):
        super().__init__()
        reject_unknown(type(self), training_only)

    def encode(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """z itself."""
        return z
