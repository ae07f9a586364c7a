"""How a model's networks compute: number format, memory layout, recomputation, compilation.

Schedule, resampling, losses, measurement operators and the optimisers' state are float32 whatever is chosen here.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ldm.acceleration.first_stage import accelerate_first_stage
from ldm.acceleration.layers import FROZEN
from ldm.acceleration.precision import HalfPrecision
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.model import Upsample
from util.errors import UserError
from util.logging import LOGGER
from util.words import unknown

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
            raise UserError(f"--precision {self.precision}: this {device.type} device offers only {offered}")


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


def accelerate(model: LatentDiffusion, arithmetic: Arithmetic) -> None:
    """Make a built model compute so: its weights must not change any more, and its tensors keep their names.

    Weights of a half precision are rounded to it here, once.

    Raises:
        UserError: the model's device has no such arithmetic.
    """
    arithmetic.check(model.device)
    if model.device.type == "cuda":
        # Convolutions only: the matrix products of operators are to stay exact.
        torch.backends.cudnn.allow_tf32 = arithmetic.precision == "tf32"
    half, processor = HALF.get(arithmetic.precision), model.device.type == "cpu"
    compiled = arithmetic.compile and can_compile(model.device)
    networks = nn.ModuleList([model.model, model.first_stage_model])
    stage = model.first_stage_model
    accelerate_first_stage(
        stage, half or next(model.parameters()).dtype, processor, compiled, low_memory=arithmetic.low_memory
    )
    networks.to(memory_format=LAYOUT)
    if half is not None:
        for module in networks.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | Upsample):
                module.to(half)
        model.compute = HalfPrecision(half)
    if compiled:
        for network in filter(None, (model.model.diffusion_model, getattr(stage, "decoder", None))):
            network.compile()
        for module in networks.modules():
            if isinstance(module, FROZEN):
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works here, found by compiling something small; a warning says why where not."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # what is missing, and what torch raises then, differs from system to system
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        LOGGER.warning("this machine cannot compile networks (%s); continuing without", reason)
        return False
    return True
