"""First stages: the autoencoders whose latents the diffusion model knows."""

from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import CoderSettings, Decoder, Encoder
from ldm.modules.quantize import VectorQuantizer
from ldm.modules.sizes import Channels, Entries
from ldm.util import read_params
from util.errors import UserError
from util.settings import Flag, Settings


class AutoencoderSettings(Settings):
    """The shape of an autoencoder.

    Attributes:
        embed_dim: channels of the latent.
        ddconfig: the shape of Encoder and Decoder.
        use_quant_conv, use_post_quant_conv: 1x1 convolutions behind the encoder and before the decoder.
    """

    embed_dim: Channels
    ddconfig: CoderSettings
    use_quant_conv: Flag = True
    use_post_quant_conv: Flag = True


class VQSettings(AutoencoderSettings):
    """Those of a vector-quantised one, with the number of entries of its codebook."""

    n_embed: Entries


def _one_by_one(in_channels: int, out_channels: int, used: bool) -> nn.Module:
    if used:
        return nn.Conv2d(in_channels, out_channels, 1)
    if in_channels != out_channels:
        raise UserError("an autoencoder without use_quant_conv or use_post_quant_conv needs embed_dim = z_channels")
    return nn.Identity()


class VQModelInterface(nn.Module):
    """Vector-quantised autoencoder, used as the published latent diffusion models do.

    Keywords are those of `VQSettings`. Images have C = ``image_channels`` channels.
    """

    def __init__(self, **params: Any):
        super().__init__()
        settings = read_params(VQSettings, params, type(self))
        shape = settings.ddconfig
        self.embed_dim, self.resolution, self.image_channels = settings.embed_dim, shape.resolution, shape.in_channels
        self.encoder = Encoder(**shape.model_dump())
        self.decoder = Decoder(**shape.model_dump())
        self.downsampling = 2 ** (len(shape.ch_mult) - 1)
        self.quantize = VectorQuantizer(settings.n_embed, settings.embed_dim)
        self.quant_conv = _one_by_one(shape.z_channels, settings.embed_dim, settings.use_quant_conv)
        self.post_quant_conv = _one_by_one(settings.embed_dim, shape.z_channels, settings.use_post_quant_conv)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to latents (B, embed_dim, H/f, W/f), before quantisation."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Latents (B, embed_dim, h, w) to images (B, C, f h, f w), quantised first unless told not to."""
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
    """Autoencoder with a Gaussian latent (Kingma and Welling, 2014).

    Keywords are those of `AutoencoderSettings`. Images have C = ``image_channels`` channels.
    """

    def __init__(self, **params: Any):
        super().__init__()
        settings = read_params(AutoencoderSettings, params, type(self))
        shape = settings.ddconfig
        if not shape.double_z:
            raise UserError("AutoencoderKL needs ddconfig.double_z: true")
        self.embed_dim, self.resolution, self.image_channels = settings.embed_dim, shape.resolution, shape.in_channels
        self.encoder = Encoder(**shape.model_dump())
        self.decoder = Decoder(**shape.model_dump())
        self.downsampling = 2 ** (len(shape.ch_mult) - 1)
        self.quant_conv = _one_by_one(2 * shape.z_channels, 2 * settings.embed_dim, settings.use_quant_conv)
        self.post_quant_conv = _one_by_one(settings.embed_dim, shape.z_channels, settings.use_post_quant_conv)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Images (B, C, H, W) in [-1, 1] to the Gaussian over their latents."""
        # Its standard deviation is an exponential: not in half precision.
        return DiagonalGaussian(self.quant_conv(self.encoder(x)).to(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, embed_dim, h, w) to images (B, C, f h, f w)."""
        return self.decoder(self.post_quant_conv(z))


class IdentityFirstStage(nn.Module):
    """No first stage: the diffusion model works on pixels."""

    downsampling = 1

    def __init__(self, vq_interface: Flag = False, **params: Any):
        super().__init__()
        read_params(Settings, params, type(self))

    def encode(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """z itself."""
        return z
