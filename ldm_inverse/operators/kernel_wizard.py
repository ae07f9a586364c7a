"""The learned blur of Tran, Tran, Phung and Hoai, "Explore Image Deblurring via Encoded Blur Kernel Space", CVPR 2021.

A network that blurs a sharp image as a code says. Tensor names and layer order are those of the published weights.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from util.settings import Flag, Settings, read, whole

Channels = Annotated[int, whole(1, 4096)]


# The published options. Some allow one value: only that form has published weights. Others are not the network's.


class _Options(Settings):
    model_config = ConfigDict(extra="ignore")


class ExtractorOptions(_Options):
    """Options of the code estimator."""

    norm: Literal["none"]
    use_sharp: Literal[True]
    n_blocks: Channels
    padding_type: Literal["reflect"]
    use_dropout: Literal[False]


class AdapterOptions(_Options):
    """Options of the adapter."""

    norm: Literal["none"]
    use_dropout: Literal[False]


class WizardOptions(_Options):
    """Options of the network."""

    input_nc: Literal[3]
    nf: Channels
    front_RBs: Channels
    back_RBs: Channels
    N_frames: Literal[1]
    kernel_dim: Channels
    use_vae: Flag
    KernelExtractor: ExtractorOptions
    Adapter: AdapterOptions


class ResidualBlock(nn.Module):
    """x + conv2(relu(conv1(x))), 3x3, without normalisation."""

    def __init__(self, nf: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(nf, nf, 3, padding=1)
        self.conv2 = nn.Conv2d(nf, nf, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


class SkipLevel(nn.Module):
    """A level of the adapter's U-Net: halve the sides, go through the submodule, double the sides again.

    Args:
        outer: channels in and out.
        inner: channels between.
        extra: channels that join `inner` before going up: the submodule's skip, or the code at the innermost level.
        submodule: the next level, or None for the innermost.
        outermost: whether this is the first level.
    """

    def __init__(
        self, outer: int, inner: int, extra: int, submodule: nn.Module | None = None, outermost: bool = False
    ) -> None:
        super().__init__()
        self.outermost = outermost
        down = nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=False)
        up = nn.ConvTranspose2d(inner + extra, outer, 4, stride=2, padding=1, bias=outermost)
        # Identity: the slot of a normalisation, which the published options turn off.
        if outermost:
            self.down = nn.Sequential(down)
        elif submodule is None:
            self.down = nn.Sequential(nn.LeakyReLU(0.2), down)
        else:
            self.down = nn.Sequential(nn.LeakyReLU(0.2), down, nn.Identity())
        self.submodule = submodule
        self.up = nn.Sequential(nn.ReLU(), up, nn.Tanh() if outermost else nn.Identity())

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        if self.outermost:
            return self.up(self._inner(self.down(x), code))
        # The published activation works in place, so the skip carries the activated input.
        activated = self.down[0](x)
        return torch.cat([self.up(self._inner(self.down[1:](activated), code)), activated], 1)

    def _inner(self, deep: Tensor, code: Tensor) -> Tensor:
        return torch.cat([deep, code], 1) if self.submodule is None else self.submodule(deep, code)


class KernelAdapter(nn.Module):
    """Bends sharp features (B, nf, h, w) to blurred ones by a code (B, kernel_dim, h / 32, w / 32)."""

    def __init__(self, nf: int, kernel_dim: int) -> None:
        super().__init__()
        level = SkipLevel(nf * 8, nf * 8, kernel_dim)
        for outer, inner in ((nf * 4, nf * 8), (nf * 2, nf * 4), (nf, nf * 2)):
            level = SkipLevel(outer, inner, inner, level)
        self.model = SkipLevel(nf, nf, nf, level, outermost=True)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return self.model(x, code)


class ExtractorBlock(nn.Module):
    """One residual block of the code estimator."""

    def __init__(self, nf: int) -> None:
        super().__init__()
        conv = [nn.ReflectionPad2d(1), nn.Conv2d(nf, nf, 3, bias=False), nn.Identity()]
        again = [nn.ReflectionPad2d(1), nn.Conv2d(nf, nf, 3, bias=False), nn.Identity()]
        self.conv_block = nn.Sequential(*conv, nn.ReLU(), *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class KernelExtractor(nn.Module):
    """Estimates a code from a sharp and a blurred image's features, concatenated (B, 2 nf, h, w).

    Restoration does not use it: codes are drawn. Its weights are part of the published file.
    """

    def __init__(self, nf: int, kernel_dim: int, use_vae: bool, n_blocks: int) -> None:
        super().__init__()
        out = 2 * kernel_dim if use_vae else kernel_dim  # a mean and a log variance
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(2 * nf, nf, 7, bias=False), nn.Identity(), nn.ReLU()]
        for i in range(5):
            wide, wider = min(nf * 2**i, out), min(nf * 2 ** (i + 1), out)
            layers += [nn.Conv2d(wide, wider, 3, stride=2, padding=1, bias=False), nn.Identity(), nn.ReLU()]
        layers += [ExtractorBlock(wider) for _ in range(n_blocks)]
        self.model = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return self.model(features)


class KernelWizard(nn.Module):
    """The network: sharp features, the adapter, and a trunk whose result is added to the sharp image.

    Args:
        opt: the published options (`WizardOptions`).

    Raises:
        UserError: an option is missing or has a value that no published weights have.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        options = read(WizardOptions, opt, "KernelWizard")
        nf, self.kernel_dim = options.nf, options.kernel_dim
        self.feature_extractor = _front(nf, options.front_RBs)
        self.kernel_extractor = KernelExtractor(nf, self.kernel_dim, options.use_vae, options.KernelExtractor.n_blocks)
        self.adapter = KernelAdapter(nf, self.kernel_dim)
        self.recon_trunk = _trunk(nf, options.back_RBs)

    def adaptKernel(self, x_sharp: Tensor, kernel: Tensor) -> Tensor:
        """Blur images.

        Args:
            x_sharp: (B, 3, H, W) in [0, 1], sides multiples of 128.
            kernel: the code, (B, kernel_dim, H / 128, W / 128).

        Returns:
            the blurred images, not clipped.
        """
        features = self.adapter(self.feature_extractor(x_sharp), kernel)
        return x_sharp + self.recon_trunk(features)


def _front(nf: int, blocks: int) -> nn.Sequential:
    layers = [nn.Conv2d(3, nf, 3, padding=1), nn.LeakyReLU(0.1)]
    for _ in range(2):
        layers += [nn.Conv2d(nf, nf, 3, stride=2, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, *[ResidualBlock(nf) for _ in range(blocks)])


def _trunk(nf: int, blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = [ResidualBlock(nf) for _ in range(blocks)]
    for wide in (4 * nf, 256):
        layers += [nn.Conv2d(nf, wide, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.1)]
    layers += [nn.Conv2d(64, 64, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(64, 3, 3, padding=1)]
    return nn.Sequential(*layers)
