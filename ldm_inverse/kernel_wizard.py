"""The learned blur of Tran, Tran, Phung and Hoai, "Explore Image Deblurring via Encoded Blur Kernel Space", CVPR 2021.

A network that blurs a sharp image as a code says. Tensor names and layer order are those of the published weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from util.checks import whole_number
from util.errors import UserError

# What the published options may not change: only this form has published weights.
_FIXED = {"input_nc": 3, "N_frames": 1}
_FIXED_EXTRACTOR = {"norm": "none", "use_sharp": True, "padding_type": "reflect", "use_dropout": False}
_FIXED_ADAPTER = {"norm": "none", "use_dropout": False}


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
            return self.up(self.submodule(self.down(x), code))
        # The published activation works in place, so the skip carries the activated input.
        activated = self.down[0](x)
        deep = self.down[1:](activated)
        deep = torch.cat([deep, code], 1) if self.submodule is None else self.submodule(deep, code)
        return torch.cat([self.up(deep), activated], 1)


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
        opt: the published options: nf, front_RBs, back_RBs, kernel_dim, use_vae, KernelExtractor.n_blocks; others are
            accepted at their published value only.

    Raises:
        UserError: an option is missing or has a value that no published weights have.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        for part, fixed in (((), _FIXED), (("KernelExtractor",), _FIXED_EXTRACTOR), (("Adapter",), _FIXED_ADAPTER)):
            for key, value in fixed.items():
                if _option(opt, *part, key) != value:
                    raise UserError(f"the blur network's option {'.'.join((*part, key))} can only be {value!r}")
        nf, self.kernel_dim = _count(opt, "nf"), _count(opt, "kernel_dim")
        use_vae, n_blocks = bool(_option(opt, "use_vae")), _count(opt, "KernelExtractor", "n_blocks")
        self.feature_extractor = _front(nf, _count(opt, "front_RBs"))
        self.kernel_extractor = KernelExtractor(nf, self.kernel_dim, use_vae, n_blocks)
        self.adapter = KernelAdapter(nf, self.kernel_dim)
        self.recon_trunk = _trunk(nf, _count(opt, "back_RBs"))

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
    layers = [ResidualBlock(nf) for _ in range(blocks)]
    for wide in (4 * nf, 256):
        layers += [nn.Conv2d(nf, wide, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.1)]
    layers += [nn.Conv2d(64, 64, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(64, 3, 3, padding=1)]
    return nn.Sequential(*layers)


def _option(opt: Mapping[str, Any], *path: str) -> Any:
    for key in path:
        if not isinstance(opt, Mapping) or key not in opt:
            raise UserError(f"the blur network's options lack {'.'.join(path)}")
        opt = opt[key]
    return opt


def _count(opt: Mapping[str, Any], *path: str) -> int:
    return whole_number(f"the blur network's option {'.'.join(path)}", _option(opt, *path), 1, 4096)
