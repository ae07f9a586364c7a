"""Where a vector-quantised autoencoder starts: the best linear code of its patches, and a codebook from data.

A random encoder spends most of a short training finding what principal components give at once: patches of f x f
pixels, projected to ``z_channels`` numbers. `linear_encoder` writes that projection into the weights of an Encoder.
Two things stand in the way, GroupNorm and SiLU before the last convolution. Each component x travels as the pair
(x, -x), because ``silu(x) - silu(-x) = x``; and it shares its normalisation group with the constants (c, -c), c far
above its deviation, so that the group's statistics hardly depend on the picture.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.models.autoencoder import VQModelInterface
from ldm.modules.quantize import VectorQuantizer
from ldm.training.pictures import to_model_range
from ldm.training.settings import CodebookFit
from util.errors import UserError

PICTURES_FOR_COMPONENTS = 400
PICTURES_AT_ONCE = 16
MOVED_SHARE = 80  # of so many entries, one is moved
CONSTANT = 100.0  # c, in deviations of the component


def patch_components(pictures: np.ndarray, factor: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components of the factor x factor patches of uint8 pictures (N, H, W, 3).

    Returns:
        ``(components, mean, deviations)`` of shapes (count, 3, factor, factor), (3, factor, factor) and (count,), for
        pictures in [-1, 1]; the components are orthonormal and sorted by deviation.
    """
    some = pictures[:: max(1, len(pictures) // PICTURES_FOR_COMPONENTS)]
    patches = nn.functional.unfold(to_model_range(some), factor, stride=factor).transpose(1, 2).flatten(0, 1).double()
    mean = patches.mean(0)
    variances, vectors = torch.linalg.eigh((patches - mean).T.cov())
    top = torch.arange(len(variances) - 1, len(variances) - 1 - count, -1)
    shape = (3, factor, factor)
    return vectors.T[top].reshape(count, *shape), mean.reshape(shape), variances[top].clamp(min=0).sqrt()


@torch.no_grad()
def linear_encoder(model: VQModelInterface, pictures: np.ndarray, whitening: float) -> None:
    """Make the encoder compute ``w_k <v_k, patch - mean>``, v the patches' principal components.

    ``w_k`` is ``deviation_k ** -whitening`` times the factor that gives the latent unit mean square. The residual
    branches start at zero and everything that the code does not need keeps its random values, so all of it can be
    trained further. It is worked out on the processor, whatever device the model is on.

    Raises:
        UserError: an encoder whose last level has fewer than 128 channels, or too few groups for its latent.
    """
    z_channels, width = model.encoder.conv_out.out_channels, model.encoder.conv_out.in_channels
    if width < 128 or z_channels > 32 or model.embed_dim != z_channels:
        raise UserError(
            "init: linear needs 128 channels at the last level, at most 32 z_channels, and embed_dim = z_channels"
        )
    device = next(model.parameters()).device
    model.cpu()
    _write_linear_code(model, pictures, whitening)
    model.to(device)


def _write_linear_code(model: VQModelInterface, pictures: np.ndarray, whitening: float) -> None:
    encoder: Any = model.encoder
    z_channels, width = encoder.conv_out.out_channels, encoder.conv_out.in_channels
    components, mean, deviations = patch_components(pictures, model.downsampling, z_channels)
    weights = deviations ** (1 - whitening)
    scale = deviations**-whitening / weights.square().mean().sqrt()
    _silence_residual_branches(encoder)
    _gather_patches(encoder, components * scale[:, None, None, None])
    deviations, offset = deviations * scale, (components * mean).sum((1, 2, 3)) * scale

    group = width // 32
    first = torch.arange(z_channels) * group
    lift = torch.zeros(width, z_channels, dtype=torch.float64)
    lift[first, torch.arange(z_channels)] = 1
    lift[first + 1, torch.arange(z_channels)] = -1
    constants = torch.zeros(width, dtype=torch.float64)
    constants[first + 2], constants[first + 3] = CONSTANT * deviations, -CONSTANT * deviations
    _spread(encoder, lift, constants, z_channels * group)

    rms = (deviations.square() * (1 + CONSTANT**2) * 2 / group).sqrt()
    encoder.norm_out.weight[first] = encoder.norm_out.weight[first + 1] = rms.float()
    encoder.conv_out.weight.zero_()
    encoder.conv_out.weight[torch.arange(z_channels), first, 1, 1] = 1
    encoder.conv_out.weight[torch.arange(z_channels), first + 1, 1, 1] = -1
    encoder.conv_out.bias.copy_(-offset)
    after: Any = model.quant_conv
    nn.init.dirac_(after.weight)
    nn.init.zeros_(after.bias)


def _silence_residual_branches(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if ".conv2." in name or ".proj_out." in name:
            nn.init.zeros_(parameter)


def _gather_patches(encoder: Any, components: Tensor) -> None:
    """Carry pixels, then 2x2 blocks, ... in the first channels; the last downsampling applies the components."""
    encoder.conv_in.weight[:3].zero_()
    encoder.conv_in.bias[:3].zero_()
    encoder.conv_in.weight[torch.arange(3), torch.arange(3), 1, 1] = 1
    carried = 3
    *inner, last = encoder.down[:-1]
    for level in inner:
        _keep(level, carried)
        conv = level.downsample.conv
        conv.weight[: 4 * carried].zero_()
        conv.bias[: 4 * carried].zero_()
        for out in range(4 * carried):
            channel, row, column = out // 4, out // 2 % 2, out % 2
            conv.weight[out, channel, row, column] = 1
        carried *= 4
    _keep(last, carried)
    # Channel order after n gatherings: (colour, bits of row and column, finest position first).
    count, _, side, _ = components.shape
    for _ in inner:
        side //= 2
    taps = _by_gathering(components, len(inner))
    conv = last.downsample.conv
    conv.weight[:count].zero_()
    conv.bias[:count].zero_()
    conv.weight[:count, :carried, :2, :2] = taps.float()


def _by_gathering(components: Tensor, gatherings: int) -> Tensor:
    """Rearrange (count, C, s, s) components to the channels and the 2x2 taps that remain after the gatherings."""
    for _ in range(gatherings):
        count, channels, side, _ = components.shape
        blocks = components.reshape(count, channels, side // 2, 2, side // 2, 2)
        components = blocks.permute(0, 1, 3, 5, 2, 4).reshape(count, channels * 4, side // 2, side // 2)
    return components


def _keep(level: Any, carried: int) -> None:
    """Let the level's shortcuts pass the first ``carried`` channels unchanged."""
    for block in level.block:
        shortcut: Any = block.nin_shortcut
        if isinstance(shortcut, nn.Conv2d):
            weight, bias = shortcut.weight, shortcut.bias
            assert bias is not None  # as the first stage makes its shortcuts
            weight[:carried].zero_()
            bias[:carried].zero_()
            weight[torch.arange(carried), torch.arange(carried)] = 1


def _spread(encoder: Any, lift: Tensor, constants: Tensor, reserved: int) -> None:
    """Lay the code out in pairs and constants over the first ``reserved`` channels of the last level."""
    first = encoder.down[-1].block[0]
    count = lift.shape[1]
    conv: Any
    if isinstance(first.nin_shortcut, nn.Conv2d):
        conv, inputs = first.nin_shortcut, torch.eye(count, dtype=torch.float64)[:, :, None, None]
    else:
        conv = encoder.down[-2].downsample.conv
        inputs = conv.weight[:count].double()
    spread = torch.einsum("oc,cikl->oikl", lift, inputs.double())
    conv.weight[:reserved].zero_()
    conv.weight[:reserved, : spread.shape[1]] = spread[:reserved].float()
    conv.bias[:reserved] = constants[:reserved].float()


@torch.no_grad()
def codebook_from_data(
    model: VQModelInterface, pictures: np.ndarray, rng: np.random.RandomState, fit: CodebookFit, further: bool = False
) -> None:
    """Fit the codebook to the latents of random pictures: from random latents, or ``further`` from where it is."""
    entries = model.quantize.embedding.weight
    codes = _some_codes(model, pictures, rng, fit.codes).to(entries.device)
    if not further:
        chosen = rng.choice(len(codes), len(entries), replace=len(codes) < len(entries))
        entries.copy_(codes[torch.from_numpy(chosen).to(codes.device)])
    fit_codebook(model.quantize, codes, fit.iterations, rng)


@torch.no_grad()
def fit_codebook(codebook: VectorQuantizer, codes: Tensor, iterations: int, rng: np.random.RandomState) -> None:
    """Lower the mean squared distance from ``codes`` (N, e_dim) to their nearest entries.

    Lloyd's iterations, which alone end in a poor minimum: they never move an entry from where many are to where few
    are. So in every fifth iteration, but for the last sixth of them, the entries that matter least (the smallest sums
    of squared distances) go beside those that matter most.
    """
    entries = codebook.embedding.weight
    moved = len(entries) // MOVED_SHARE
    for iteration in range(iterations):
        nearest = codebook.nearest(codes)
        counts = torch.bincount(nearest, minlength=len(entries))
        sums = torch.zeros_like(entries).index_add_(0, nearest, codes)
        distances = (codes - entries[nearest]).square().sum(1)
        entries.copy_(torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], entries))
        if iteration % 5 == 4 and iteration < iterations * 5 / 6:
            order = torch.zeros_like(entries[:, 0]).index_add_(0, nearest, distances).argsort()
            step = 0.15 * (distances.mean() / entries.shape[1]).sqrt()
            beside = torch.from_numpy(rng.standard_normal((moved, entries.shape[1]))).to(entries) * step
            entries[order[:moved]] = entries[order[len(order) - moved :].flip(0)] + beside


def _some_codes(model: VQModelInterface, pictures: np.ndarray, rng: np.random.RandomState, count: int) -> Tensor:
    """Latents (N, embed_dim) at every position of random pictures, about ``count`` of them."""
    device = next(model.parameters()).device
    positions = (pictures.shape[1] // model.downsampling) ** 2
    chosen = rng.permutation(len(pictures))[: max(1, count // positions)]
    parts = np.array_split(chosen, -(-len(chosen) // PICTURES_AT_ONCE))
    encoded = [model.encode(to_model_range(pictures[np.sort(part)]).to(device)) for part in parts]
    return torch.cat([latents.permute(0, 2, 3, 1).reshape(-1, model.embed_dim) for latents in encoded])
