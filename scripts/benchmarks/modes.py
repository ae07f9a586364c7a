"""The parts of a restoration, each in every mode that a device has, and in the plain rendering beside them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.acceleration.arithmetic import HALF, PRECISIONS, Arithmetic, accelerate
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.prior import DDIMSchedule, LatentPrior
from ldm.util import instantiate_from_config
from ldm_inverse.measurement import Measurement
from ldm_inverse.solvers.dps import soft_step
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.resample import fit_latent, fit_pixel, time_travel
from ldm_inverse.solvers.resample_settings import LatentSettings, PixelSettings, ResampleSettings
from ldm_inverse.task import Task
from model_loader import build_model as model_without_weights
from scripts.benchmarks import published
from util.errors import UserError

PLAIN = "plain"
OPERATORS: Mapping[str, dict[str, Any]] = {
    "super_resolution": {"scale_factor": 4},
    "gaussian_blur": {"kernel_size": 61, "intensity": 3.0},
    "motion_blur": {"kernel_size": 61, "intensity": 0.5},
    "inpainting": {"mask_type": "random", "mask_prob_range": (0.7, 0.71)},
}
PIXEL_ITERATIONS = 10
STEPS, INDEX = 500, 250
# No optimisation reaches it: the iterations asked for are done.
NEVER = 1e-15


@dataclass(frozen=True)
class Subject:
    """The objects timed in one mode: a model, and a problem for it.

    Attributes:
        plain: compute the published way.
    """

    model: LatentDiffusion
    plain: bool
    task: Task
    measurement: Measurement
    image: Tensor
    z: Tensor

    def problem(self) -> InverseProblem:
        """Return the problem that the solver is given."""
        operator_fn = self.task.operator_fn(self.measurement)
        condition_fn = self.task.condition_fn(self.measurement, self.model)
        return InverseProblem(self.measurement.y, operator_fn, condition_fn)

    def plain_operator(self) -> nn.Module:
        """Return the operator in its plain rendering."""
        height, width = self.image.shape[-2:]
        plain = published.plain_operator(self.task.operator, self.measurement.state, (height, width))
        return plain.to(self.image.device)


def build_state(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Return random weights for a model's YAML, none of them zero."""
    torch.manual_seed(seed)
    model = instantiate_from_config(config["model"])
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.state_dict()


def build_model(config: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> LatentDiffusion:
    """Return a model with these weights, in evaluation mode."""
    model = model_without_weights(config)
    model.load_state_dict(dict(state), assign=True)
    return model.to(device).eval().requires_grad_(False)


def modes(device: torch.device, precisions: Iterable[str] | None, compiled: bool) -> dict[str, Arithmetic]:
    """Return the modes to time, by name: each precision asked for, or all that the device has; low memory; compiled.

    Raises:
        UserError: a precision that the device has not.
    """
    chosen = {}
    for precision in precisions or PRECISIONS:
        arithmetic = Arithmetic(precision)
        try:
            arithmetic.check(device)
        except UserError:
            if precisions:
                raise
            continue
        chosen[precision] = arithmetic
        if compiled:
            chosen[f"{precision}, compiled"] = Arithmetic(precision, compile=True)
    return {**chosen, "fp32, low memory": Arithmetic(low_memory=True)}


def dtype_of(arithmetic: Arithmetic) -> torch.dtype:
    """Return the number format of a mode's convolutions."""
    return HALF.get(arithmetic.precision, torch.float32)


def make_subject(
    model: LatentDiffusion, arithmetic: Arithmetic | None, operator: str, side: int, batch: int = 1
) -> Subject:
    """Return a model in a mode (None: the plain rendering) with a measurement of a random image of ``side`` pixels.

    ``batch`` latents are restored from it at a time.
    """
    if arithmetic is None:
        model.model.requires_grad_(True)
        published.plain_networks(model)
    else:
        accelerate(model, arithmetic)
    task = Task({"name": operator, **OPERATORS[operator]}, {"name": "gaussian", "sigma": 0.01}).to(model.device)
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(1, 3, side, side, generator=generator) * 2 - 1).to(model.device)
    measurement = task.measure(image, np.random.RandomState(0), np.random.RandomState(1))
    z = torch.randn(batch, *model.latent_shape(side, side), generator=generator).to(model.device)
    return Subject(model, arithmetic is None, task, measurement, image, z)


def network_parts(subject: Subject) -> dict[str, Callable[[], Any]]:
    """Return what is timed of the networks."""
    model, z, problem = subject.model, subject.z, subject.problem()
    schedule = DDIMSchedule.of(model.alphas_cumprod, STEPS)
    prior = LatentPrior(model, schedule)
    settings = ResampleSettings()
    latent = LatentSettings(max_iters=1, eps=NEVER)
    t = torch.full((len(z),), 500, device=z.device)
    scale = settings.soft_scale * schedule.alphas[INDEX]
    parts: dict[str, Callable[[], Any]] = {
        "UNet forward": lambda: model.apply_model(z, t),
        "decoder forward": lambda: model.decode_first_stage(z),
        "latent iteration": lambda: fit_latent(model, problem, z, latent),
        "sampling step": lambda: soft_step(prior, problem, z, INDEX, scale),
        "time travel": lambda: time_travel(prior, z, INDEX, settings),
    }
    if subject.plain:
        operator, decode = subject.plain_operator(), model.differentiable_decode_first_stage
        parts["latent iteration"] = lambda: published.latent_iteration(decode, operator, subject.measurement.y, z)
        timesteps = [torch.full((1,), schedule.timesteps[INDEX - 1 - k], device=z.device) for k in range(5)]
        parts["time travel"] = lambda: published.time_travel(model.model, z, timesteps)
    return parts


def pixel_iterations(subject: Subject) -> Callable[[], Any]:
    """Return `PIXEL_ITERATIONS` iterations over the image."""
    start, y = torch.zeros_like(subject.image), subject.measurement.y
    if subject.plain:
        operator = subject.plain_operator()
        return lambda: published.pixel_iterations(operator, y, start, PIXEL_ITERATIONS)
    settings, problem = PixelSettings(max_iters=PIXEL_ITERATIONS, eps=NEVER), subject.problem()
    return lambda: fit_pixel(problem, start, settings)
