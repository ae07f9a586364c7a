"""The published way of computing, rendered plainly, to measure against: the same results by the obvious arithmetic."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.acceleration.layers import become
from ldm.modules.attention import AttentionBlock
from ldm_inverse.operators import Operator
from ldm_inverse.operators.blur import Blur
from ldm_inverse.operators.inpainting import Inpainting
from ldm_inverse.operators.resizer import resize_matrix
from ldm_inverse.operators.super_resolution import SuperResolution


class DenseBlur(nn.Module):
    """Correlation with a kernel of full size, zeros included, which asks for a gradient of its own."""

    def __init__(self, kernel: Tensor):
        super().__init__()
        side = kernel.shape[-1]
        self.pad = nn.ReflectionPad2d(side // 2)
        self.conv = nn.Conv2d(3, 3, side, bias=False, groups=3)
        self.conv.weight.data.copy_(kernel.reshape(1, 1, side, side).expand(3, 1, side, side))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class GatheredResize(nn.Module):
    """Resizing one side after the other: the pixels that each output needs are gathered, weighted and summed."""

    def __init__(self, size: tuple[int, int], factor: int):
        super().__init__()
        for dim, n in zip(("rows", "columns"), size, strict=True):
            matrix = torch.from_numpy(resize_matrix(n, -(-n // factor), 1 / factor)).float()
            taps = int((matrix != 0).sum(1).max())
            positions = matrix.abs().topk(taps, dim=1).indices
            self.register_buffer(f"{dim}_positions", positions.T.contiguous())
            self.register_parameter(f"{dim}_weights", nn.Parameter(matrix.gather(1, positions).T.contiguous()))

    def forward(self, x: Tensor) -> Tensor:
        for dim, name in ((2, "rows"), (3, "columns")):
            positions, weights = getattr(self, f"{name}_positions"), getattr(self, f"{name}_weights")
            moved = x.transpose(0, dim)
            shape = (*weights.shape, *(1,) * (moved.ndim - 1))
            x = (moved[positions] * weights.reshape(shape)).sum(0).transpose(0, dim)
        return x


class Masked(nn.Module):
    """The kept pixels, the others zero."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


class TableAttention(AttentionBlock):
    """Attention by the table of all weights."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.25
        weights = torch.einsum("bhtc,bhsc->bhts", q * scale, k * scale)
        return torch.einsum("bhts,bhsc->bhtc", torch.softmax(weights, dim=-1), v)


def plain_networks(model: nn.Module) -> None:
    """Give the layers of a model that have another rendering their plain one."""
    for module in model.modules():
        if type(module) is AttentionBlock:
            become(module, TableAttention)


def plain_operator(operator: Operator, state: dict[str, Tensor], size: tuple[int, int]) -> nn.Module:
    """Return the plain rendering of an operator for images of a size.

    Raises:
        TypeError: there is none for this operator.
    """
    if isinstance(operator, Blur):
        return DenseBlur(state["kernel"] if "kernel" in state else operator.get_buffer("kernel"))
    if isinstance(operator, SuperResolution):
        return GatheredResize(size, operator.scale_factor)
    if isinstance(operator, Inpainting):
        return Masked(state["mask"])
    raise TypeError(f"no plain rendering of {type(operator).__name__}")


def pixel_iterations(operator: nn.Module, y: Tensor, image: Tensor, count: int) -> Tensor:
    """Take AdamW steps over an image; each fills all gradients that are asked for, and reads the loss back."""
    x = image.clone().requires_grad_()
    optimiser = torch.optim.AdamW([x], lr=1e-2)
    for _ in range(count):
        optimiser.zero_grad()
        loss = F.mse_loss(y, operator(x))
        loss.backward()
        optimiser.step()
        loss.item()
    return x.detach()


def latent_iteration(decode: Callable[[Tensor], Tensor], operator: nn.Module, y: Tensor, z: Tensor) -> Tensor:
    """Take one AdamW step over a latent."""
    z = z.clone().requires_grad_()
    optimiser = torch.optim.AdamW([z], lr=5e-3)
    loss = F.mse_loss(y, operator(decode(z)))
    loss.backward()
    optimiser.step()
    loss.item()
    return z.detach()


def time_travel(unet: nn.Module, z: Tensor, timesteps: Sequence[Tensor]) -> Tensor:
    """Step through timesteps; the graph of all UNet passes, with gradients for the weights, is kept to the end."""
    z = z.clone().requires_grad_()
    for t in timesteps:
        z = z - 0.01 * unet(z, t)
    return z
