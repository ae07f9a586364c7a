"""The solvers as `DDIMSampler` has them under its published names, and how it is told of a restoration."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.evaluations import counter_of
from ldm.models.diffusion.prior import LatentPrior
from ldm_inverse.solvers.fit import fit_latent, fit_pixel
from ldm_inverse.solvers.observer import Event, Observer, StageEnded, StepEnded
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.progress_bar import ProgressBar
from ldm_inverse.solvers.resample_settings import LatentSettings, PixelSettings
from ldm_inverse.solvers.restore import check_batch
from ldm_inverse.solvers.sampler_run import SamplerRun
from ldm_inverse.solvers.samplers import get_sampler
from ldm_inverse.solvers.solver import DEFAULTS, Solver
from util.errors import UserError
from util.settings import read

IterationCallback = Callable[[int, Tensor], Any]  # receives the iteration and the mean squared residuals (B,)

# Keywords of the published `posterior_sampler` that do nothing here, and the values that they may have.
KEYWORDS: Mapping[str, Sequence[Any]] = {
    "ddim_use_original_steps": (False, True),
    "normals_sequence": (None,),
    "quantize_x0": (False,),
    "mask": (None,),
    "x0": (None,),
    "temperature": (1.0,),
    "noise_dropout": (0.0,),
    "score_corrector": (None,),
    "corrector_kwargs": (None,),
}


class Callbacks:
    """An observer that calls what the published method takes, and shows a bar where it is ``verbose``.

    Args:
        keep: receives each step with its latent and its estimate of the clean latent.
        callback, img_callback, verbose: as of `DDIMSampler.posterior_sampler`.
    """

    def __init__(
        self,
        keep: Callable[[int, Tensor, Tensor], None],
        callback: Callable[[StageEnded], Any] | None,
        img_callback: Callable[[Tensor, int], Any] | None,
        verbose: bool,
    ) -> None:
        self._keep, self._callback, self._img_callback = keep, callback, img_callback
        self._bar = ProgressBar() if verbose else None

    def __call__(self, event: Event) -> None:
        """Hand an event on."""
        if self._bar is not None:
            self._bar(event)
        if isinstance(event, StageEnded) and self._callback is not None:
            self._callback(event)
        if isinstance(event, StepEnded):
            self._keep(event.step, event.state.latent, event.estimate)
            if self._img_callback is not None:
                self._img_callback(event.estimate, event.step)


def chosen_solver(sampler: str, steps: int, eta: float, settings: Any, published: Mapping[str, Any]) -> Solver:
    """Return the solver that `DDIMSampler.posterior_sampler` is asked for; settings of None are the sampler's defaults.

    Raises:
        TypeError: ``published`` has a keyword that the published method has not.
        UserError: another value of such a keyword than the published default; no such sampler, or another's settings.
    """
    for name, value in published.items():
        if name not in KEYWORDS:
            raise TypeError(f"posterior_sampler() got an unexpected keyword argument {name!r}")
        if not any(value is known or value == known for known in KEYWORDS[name]):
            raise UserError(f"{name}: only the published default, {KEYWORDS[name][0]}, is supported")
    return Solver(sampler, steps, eta, settings=settings or DEFAULTS)


def sample_posterior(
    prior: LatentPrior, problem: InverseProblem, z: Tensor, solver: Solver, observer: Observer
) -> Tensor:
    """Return the restored latents of one run over a batch, from noise z (B, C, h, w).

    Raises:
        UserError: the sampler does not sample, prior or problem are none of this batch, or the sampler refuses them.
    """
    sample = get_sampler(solver.sampler).sample
    if sample is None:
        raise UserError(f"sampler {solver.sampler!r} does not sample")
    check_batch(problem, prior, len(z))
    run = SamplerRun(prior.schedule, problem, len(z), observer, counter_of(prior.model))
    with closing(run):
        return sample(prior, problem, z, solver.settings, run)


def optimised_image(
    y: Tensor, image: Tensor, operator_fn: Callable[..., Tensor], callback: IterationCallback | None, **given: Any
) -> Tensor:
    """Return the image (B, C, H, W) that explains y, found from another, with these of the `PixelSettings` given."""
    settings = read(PixelSettings, given, "pixel_optimization")
    return fit_pixel(InverseProblem(y, operator_fn), image, settings, in_tensors(callback, image)).x


def optimised_latent(
    model: LatentDiffusion,
    y: Tensor,
    z: Tensor,
    operator_fn: Callable[..., Tensor],
    callback: IterationCallback | None,
    **given: Any,
) -> Tensor:
    """As `optimised_image`, of the latent (B, C, h, w) whose image explains y, with these of the `LatentSettings`."""
    settings = read(LatentSettings, given, "latent_optimization")
    return fit_latent(model, InverseProblem(y, operator_fn), z, settings, callback=in_tensors(callback, z)).x


def in_tensors(callback: IterationCallback | None, like: Tensor) -> Callable[[int, Sequence[float]], Any] | None:
    """The published callback, which takes losses as a tensor (B,), as one that takes numbers."""
    if callback is None:
        return None
    return lambda iteration, losses: callback(iteration, torch.tensor(losses, dtype=like.dtype, device=like.device))
