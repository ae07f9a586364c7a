"""Refinement of a decoded image, with detail that the measurement shows and the decoder cannot."""

import torch
from torch import Tensor

from ldm_inverse.solvers.lbfgs import lbfgs
from ldm_inverse.solvers.optimise import Minimum
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.proximal import Spread, border_spread, gaussian_blur, spread_out
from ldm_inverse.solvers.settings import NOISELESS_EPS, RefineSettings


def refine(problem: InverseProblem, image: Tensor, settings: RefineSettings) -> Minimum:
    r"""Return the most probable image, where the decoded one is the mean of a Gaussian prior.

    An autoencoder loses detail, so a decoded image cannot explain its measurement down to the noise. Given the
    measurement y = A(x) + n with noise of deviation sigma, and true images about the decoded x0 with covariance
    tau^2 S S^T, S a Gaussian blur (errors of neighbouring pixels are correlated), this minimises over u, with
    x = x0 + tau S u,

        ||y - A(x)||^2 / sigma^2 + ||u||^2

    as `proximal` does, but by L-BFGS with a strong Wolfe line search (Nocedal and Wright, Numerical Optimization,
    2006): where A is not linear, it ends early, and so fits less of the noise than Gauss-Newton does. No network takes
    part.

    Where the image extends beyond its measurement, the errors of decoded images are far larger towards the border, and
    correlated over longer distances: x has a third term, m tau' S' u', where m is ``problem.unmeasured``, and ||u'||^2
    is added to the sum.

    Args:
        problem: of one image, with a known noise level.
        image: x0 (1, C, H, W); left as it is.
        settings: tau is ``deviation``, tau' ``border_deviation``; the blurs' correlations are in pixels.

    Returns:
        x, and the mean squared residual before each of the operator's passes.
    """
    sigma = max(problem.sigmas(1)[0], NOISELESS_EPS)
    own: Spread = settings.deviation, gaussian_blur(settings.correlation, image)
    spreads = [own, *border_spread(problem, image, settings)]
    u = image.new_zeros(len(spreads), *image.shape[1:])
    losses: list[Tensor] = []  # read back at the end, not one by one

    def refined(u: Tensor) -> Tensor:
        return image + spread_out(spreads, u)

    def objective(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            loss = problem.loss(refined(u)).sum()
            total = loss * problem.entries / sigma**2 + u.square().sum()
            (gradient,) = torch.autograd.grad(total, u)
        losses.append(loss.detach())
        return total.detach(), gradient

    u, ended = lbfgs(objective, u, settings.iterations(problem.unmeasured is not None))
    return Minimum(refined(u).detach(), [torch.stack(losses).tolist()], [ended], [None])
