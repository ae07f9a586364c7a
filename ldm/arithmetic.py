"""How a model's networks compute: number format, memory layout, recomputation, compilation.

Schedule, resampling, losses, measurement operators and the optimisers' state are float32 whatever is chosen here.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import Conv3x3, Upsample
from util.errors import UserError
from util.registry import unknown

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

logger = logging.getLogger("resample")

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
# Of the networks' kernels, and so of what goes through them.
LAYOUT = torch.channels_last
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Arithmetic:
    """How networks compute.

    Attributes:
        precision: "fp32"; "tf32", convolutions with shortened factors (NVIDIA cards from Ampere on); "bf16" or "fp16",
            convolutions, matrix products and attention in half precision.
        low_memory: do not keep what is inside the decoder's large blocks for its gradient, but compute it again.
        compile: fuse operations with `torch.compile`.

    Raises:
        UserError: an unknown precision.
    """

    precision: str = "fp32"
    low_memory: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)

    def check(self, device: torch.device) -> None:
        """Check that a device has this arithmetic.

        Raises:
            UserError: it has not.
        """
        if not _has(device, self.precision):
            offered = ", ".join(name for name in PRECISIONS if _has(device, name))
            raise UserError(f"--precision {self.precision}: this {device.type} device has {offered} only")


def _has(device: torch.device, precision: str) -> bool:
    if precision == "fp32":
        return True
    if device.type == "cuda":
        if precision == "fp16":
            return True
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu" and precision in HALF:
        if not torch.backends.mkldnn.is_available():
            return False
        # torch has no public way to ask.
        return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported")())
    return device.type == "mps" and precision in HALF


def set_arithmetic(model: "LatentDiffusion", arithmetic: Arithmetic) -> None:
    """Make a loaded model compute so. Weights of a half precision are rounded to it here, once.

    Raises:
        UserError: the model's device has no such arithmetic.
    """
    arithmetic.check(model.device)
    if model.device.type == "cuda":
        # Convolutions only: the matrix products of operators are to stay exact.
        torch.backends.cudnn.allow_tf32 = arithmetic.precision == "tf32"
    model.half = HALF.get(arithmetic.precision)
    networks = nn.ModuleList([model.model, model.first_stage_model])
    decoder = getattr(model.first_stage_model, "decoder", None)
    if decoder is not None and (model.device.type == "cpu" or not arithmetic.compile):
        # UNet and encoder have few passes: there it would cost more memory than it saves time. What is frozen does not
        # go through a compiler, which helps a card more.
        for module in decoder.modules():
            if isinstance(module, Conv3x3 | Upsample):
                module.freeze(model.half or decoder.conv_in.weight.dtype)
    networks.to(memory_format=LAYOUT)
    if model.half is not None:
        for module in networks.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | Upsample):
                module.to(model.half)
    if decoder is not None:
        # A compiler decides for itself which activations to keep.
        decoder.recompute(activations=not arithmetic.compile, blocks=arithmetic.low_memory)
    if arithmetic.compile and _compiles(model.device):
        for network in filter(None, (model.model.diffusion_model, decoder)):
            network.compile()
        for module in networks.modules():
            if getattr(module, "frozen", False):  # a compiler does nothing for matrix products
                module.forward = torch.compiler.disable(module.forward)


def _compiles(device: torch.device) -> bool:
    """Whether `torch.compile` works here, found by compiling something small; a warning says why where not."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # what is missing, and what torch raises then, differs from system to system
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("compile=true: this machine cannot compile (%s); going on without", reason)
        return False
    return True


def hold_gradient_in_range(x: Tensor, out: Tensor) -> None:
    """Scale a gradient up on its way from ``out`` into a half-precision network, and down where it arrives at ``x``.

    The gradient of a mean over an image's pixels is below what float16 can tell from zero. Each sample of x and out
    (B, ...), both float32, is scaled so that the largest entry at ``out`` is 1; ``x`` must have no other use.
    """
    scales: list[Tensor] = []

    def up(gradient: Tensor) -> Tensor:
        largest = gradient.abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny * 64)
        scales[:] = [1 / largest.reshape(-1, *(1,) * (gradient.ndim - 1))]
        return gradient * scales[0]

    def down(gradient: Tensor) -> Tensor:
        return gradient / scales[0]

    if out.requires_grad:
        out.register_hook(up)
        x.register_hook(down)
