"""The last word on an image: what the measurement says that the decoder cannot."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.optimise import Minimum, mean_squared_residual
from ldm.models.diffusion.posterior import InverseProblem
from ldm.models.diffusion.posterior_settings import NOISELESS_EPS, RefineSettings


def refine(problem: InverseProblem, image: Tensor, settings: RefineSettings) -> Minimum:
    r"""Return the most probable image, where the decoded one is the mean of a Gaussian prior.

    An autoencoder loses detail, so a decoded image cannot explain its measurement down to the noise. Given the
    measurement y = A(x) + n with noise of deviation sigma, and true images about the decoded x0 with covariance
    tau^2 S S^T, S a Gaussian blur (errors of neighbouring pixels go together), this minimises over u, x = x0 + tau S u,

        ||y - A(x)||^2 / sigma^2 + ||u||^2

    by L-BFGS with a strong Wolfe line search (Nocedal and Wright, Numerical Optimization, 2006). No network takes part.

    Args:
        problem: of one image, with a known noise level.
        image: x0 (1, 3, H, W); left as it is.
        settings: tau is ``deviation``, the blur's ``correlation`` is in pixels.

    Returns:
        x, and the mean squared residual before each of the operator's passes.
    """
    sigma = max(problem.noise_sigma, NOISELESS_EPS)
    spread = gaussian_blur(settings.correlation)
    u = torch.zeros_like(image).requires_grad_()
    optimiser = torch.optim.LBFGS([u], max_iter=settings.max_iters, line_search_fn="strong_wolfe")
    losses: list[float] = []

    def refined() -> Tensor:
        return image + settings.deviation * spread(u)

    def objective() -> Tensor:
        with torch.enable_grad():
            loss = mean_squared_residual(problem.measurement, problem.predict(refined())).sum()
            total = loss * problem.measurement.numel() / sigma**2 + u.square().sum()
            (u.grad,) = torch.autograd.grad(total, u)
        losses.append(loss.item())
        return total

    optimiser.step(objective)
    limit = optimiser.state[u]["n_iter"] >= settings.max_iters
    return Minimum(refined().detach(), [losses], ["limit" if limit else "plateau"], [None])


def gaussian_blur(deviation: float) -> Callable[[Tensor], Tensor]:
    """Return a separable blur of images (B, C, H, W) that keeps the variance of white noise; zeros are outside."""
    radius = max(round(4 * deviation), 1)
    positions = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (positions / deviation) ** 2)
    kernel /= kernel.norm()

    def blur(x: Tensor) -> Tensor:
        weight = kernel.to(x).view(1, 1, 1, -1).repeat(x.shape[1], 1, 1, 1)
        x = torch.nn.functional.conv2d(x, weight, padding=(0, radius), groups=x.shape[1])
        return torch.nn.functional.conv2d(x, weight.mT, padding=(radius, 0), groups=x.shape[1])

    return blur
