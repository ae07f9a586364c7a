"""This project's solvers as a reconstructor of the deepinv library, which has to be installed."""

from typing import Any

import deepinv
import torch
from torch import Generator, Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm_inverse.operators.deepinv_physics import PhysicsOperator
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.restore import restore
from ldm_inverse.solvers.solver import Solver
from util.errors import UserError


class Reconstructor(deepinv.models.Reconstructor):
    """``reconstructor(y, physics)``: images in [0, 1], as deepinv has them, restored by a latent diffusion model.

    Args:
        model: the prior (`model_loader.get_model`).
        solver: how the images are sampled.
        seed: of the noise of every call.
        sigma: deviation of the measurement noise for images in [0, 1]; None is that of the physics' noise model, where
            it has a ``sigma``, one or one for each image.
    """

    def __init__(self, model: LatentDiffusion, solver: Solver, seed: int = 0, sigma: float | None = None) -> None:
        super().__init__()
        self.model, self.solver, self.seed, self.sigma = model, solver, seed, sigma

    def forward(self, y: Tensor, physics: nn.Module, **kwargs: Any) -> Tensor:
        """Restore the images of a batch.

        Args:
            y: the measurement of images in [0, 1], (B, ...).
            physics: a `deepinv.physics.LinearPhysics`.
            kwargs: not used.

        Returns:
            (B, C, H, W), about [0, 1].

        Raises:
            UserError: as `restore`; or the noise levels are not those of a batch.
        """
        operator = PhysicsOperator(physics)
        channels = self.model.image_channels
        shape = (len(y), channels, *operator.image_size(y.shape))
        white = torch.ones(shape, dtype=y.dtype, device=y.device)
        y = 2 * y - operator(white)
        sigmas = self._sigmas(physics, len(y))
        pairs = zip(y.split(1), sigmas, strict=True)
        guesses = [operator.baseline(own, (1, *shape[1:]), sigma) for own, sigma in pairs]
        problem = InverseProblem(
            y,
            operator.forward,
            noise_sigma=None if None in sigmas else sigmas,
            initial=torch.cat(guesses).clamp(-1, 1),
            size=(shape[-2], shape[-1]),
        )
        generators = [Generator(y.device).manual_seed(self.seed + position) for position in range(len(y))]
        return (restore(self.model, problem, self.solver, generator=generators) + 1) / 2

    def _sigmas(self, physics: nn.Module, batch: int) -> list[Any]:
        """The deviation of each measurement's noise for images in [-1, 1]; None where it is not known.

        Raises:
            UserError: there are neither one nor ``batch`` of them.
        """
        told = getattr(getattr(physics, "noise_model", None), "sigma", None) if self.sigma is None else self.sigma
        levels = [None] if told is None else [2 * sigma for sigma in torch.as_tensor(told).flatten().tolist()]
        if len(levels) not in (1, batch):
            raise UserError(f"{len(levels)} noise levels for a batch of {batch}: must be one, or one each")
        return levels * batch if len(levels) == 1 else levels
