"""Soft data consistency: one gradient step towards the measurement at every sampling step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm_inverse.noises import Noise
from ldm_inverse.operators import Operator
from util.registry import Registry
from util.settings import Number

METHODS = Registry("conditioning method")


def register_conditioning_method(name: str) -> Callable:
    """Return a decorator that files a conditioning method under ``name``, for task files to use."""
    return METHODS.register(name)


def get_conditioning_method(name: str, model: Any, operator: Operator, noiser: Noise, **kwargs: Any) -> Any:
    """Build the conditioning method filed under ``name``.

    Args:
        name: the method's name.
        model: what decodes latents: ``model.differentiable_decode_first_stage(z)``.
        operator: the measurement operator.
        noiser: the measurement's noise, which decides how a residual is measured.
        kwargs: the method's own options.

    Raises:
        UserError: no such name, or a keyword that is unknown, missing or out of range.
    """
    return METHODS.build(name, model=model, operator=operator, noiser=noiser, **kwargs)


@register_conditioning_method("ps")
class PosteriorSampling:
    """The step of diffusion posterior sampling (Chung et al., ICLR 2023) in latent space.

    z <- z - scale grad_z || y - A(D(z0(z))) ||, each sample by its own norm.

    Args:
        model: decoder D, as `get_conditioning_method` says.
        operator: the measurement operator A.
        noiser: decides the norm: Euclidean, or for Poisson noise divided by |y|.
        scale: the step's length when a call gives none.
    """

    def __init__(self, model: Any, operator: Operator, noiser: Noise, scale: Number = 1.0) -> None:
        self.model = model
        self.operator = operator
        self.noiser = noiser
        self.scale = scale

    def conditioning(
        self,
        x_t: Tensor,
        measurement: Tensor,
        noisy_measurement: Tensor,
        x_prev: Tensor,
        x_0_hat: Tensor,
        scale: float | Tensor | None = None,
        quantise: bool = True,
        **state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Move ``x_t`` one step towards the measurement.

        Args:
            x_t: the latent after the sampling step, (B, C, h, w); not changed.
            measurement: not used (the published signature has it).
            noisy_measurement: y.
            x_prev: the latent before the sampling step, which requires a gradient.
            x_0_hat: the estimate of the clean latent, a function of ``x_prev``.
            scale: the step's length, a number or a tensor that broadcasts with ``x_t``.
            quantise: decode through the codebook, where the model has one.
            state: the operator's random state.

        Returns:
            the new latent, without a graph, and the norm of each sample's residual: (B,), or () for a single one.
        """
        image = self.model.differentiable_decode_first_stage(
            x_0_hat, **({} if quantise else {"force_not_quantize": True})
        )
        residual = noisy_measurement - self.operator.forward(image, **state)
        norm = self.noiser.residual_norm(residual, noisy_measurement)
        grad = torch.autograd.grad(norm.sum(), x_prev)[0]
        step = self.scale if scale is None else scale
        return x_t.detach() - step * grad, norm.detach().squeeze()
