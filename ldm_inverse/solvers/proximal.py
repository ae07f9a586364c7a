"""The exact step over images: the one nearest a given image among those that explain a measurement."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ldm_inverse.solvers.optimise import Minimum
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.resample_settings import PixelSettings
from ldm_inverse.solvers.settings import NOISELESS_EPS, RefineSettings

Map = Callable[[Tensor], Tensor]
Spread = tuple[float | Tensor, Map]

TOLERANCE = 1e-4  # of conjugate gradients: the normal equations' residual against their right side
SETTLED = 1e-3  # of Gauss-Newton: the least relative gain in the objective that another linearisation is worth
LEAST_DEVIATION = 0.01  # of true images from an estimate, in units of [-1, 1]
DIFFERENCE = 1e-2  # of a pixel at most, in units of [-1, 1], where a derivative is a central difference
HALVINGS = 6  # of a Gauss-Newton step that leads uphill


def proximal(
    problem: InverseProblem,
    image: Tensor,
    settings: PixelSettings,
    noise: tuple[Tensor, Tensor] | None = None,
    most: float = math.inf,
) -> Minimum:
    r"""Return the most probable image, for a Gaussian prior with mean ``image`` (x0).

    Given y = A(x) + n with noise of deviation sigma, and x = x0 + tau S u, where u is standard normal and S a Gaussian
    blur (errors of neighbouring pixels are correlated), this minimises over u

        ||y - A(x0 + tau S u)||^2 / sigma^2 + ||u||^2.

    Without correlation S is the identity, and a problem that has a closed form (``proximal_fn``: masks, circular blur)
    is solved by it. Otherwise conjugate gradients solve the normal equations, until their residual is a ten-thousandth
    of their right side; where A is not linear, on one linearisation after the other (Gauss-Newton), each step halved
    until it leads downhill. Nocedal and Wright, Numerical Optimization (2006), algorithm 5.2 and section 10.3. No
    network takes part. Each image is solved for on its own.

    Where the image extends beyond its measurement (``problem.unmeasured``, m), the errors of estimates are far larger
    towards the border, and correlated over longer distances: x has a third term, m tau' S' u', and ||u'||^2 is added to
    the sum.

    With ``noise``, a draw from that posterior instead, exact where A is linear: the most probable image when x0 and y
    are moved by noise of their own deviations (perturb and optimise: Papandreou and Yuille, NeurIPS 2010). The border's
    third term is not drawn.

    Args:
        problem: of a batch of B images, with known noise levels.
        image: x0 (B, C, H, W); left as it is.
        settings: tau is ``deviation``, tau' ``border_deviation``; the blurs' correlations are in pixels; each image
            gets ``max_iters`` iterations of conjugate gradients at most.
        noise: standard normal, of the image's and of the measurement's shape.
        most: the largest tau that an estimate of it may be.

    Returns:
        x, and of each image the mean squared residuals before each iteration and at the end.
    """
    found = []
    for sample, own in enumerate(image.split(1)):
        noise_of_one = None if noise is None else (noise[0][sample : sample + 1], noise[1][sample : sample + 1])
        found.append(_of_one(problem.select([sample], len(image)), own, settings, noise_of_one, most))
    return join(found)


def join(found: Sequence[Minimum]) -> Minimum:
    """The minima of single images as that of a batch."""
    x = torch.cat([each.x for each in found])
    losses = [own for each in found for own in each.losses]
    return Minimum(x, losses, [stop for each in found for stop in each.stops], [None] * len(losses))


def _of_one(
    problem: InverseProblem,
    image: Tensor,
    settings: PixelSettings,
    noise: tuple[Tensor, Tensor] | None,
    most: float,
) -> Minimum:
    sigma, max_iters = max(problem.sigmas(1)[0], NOISELESS_EPS), settings.max_iters
    blur = gaussian_blur(settings.correlation, image) if settings.correlation else identity
    if settings.deviation == "auto":
        deviation = min(estimated_deviation(problem, image, blur), most)
    else:
        deviation = settings.deviation
    if noise is not None:
        image = image + deviation * blur(noise[0])
        problem = replace(problem, measurement=problem.measurement + sigma * noise[1])
    spreads = [(deviation, blur), *border_spread(problem, image, settings)]
    if settings.correlation or problem.unmeasured is not None:
        about = _seen_from(problem, image, partial(spread_out, spreads))
        minimum = gauss_newton(about, image.new_zeros(len(spreads), *image.shape[1:]), sigma**2, max_iters)
        return replace(minimum, x=image + spread_out(spreads, minimum.x))
    weight = (sigma / deviation) ** 2
    with torch.no_grad():
        solved = problem.proximal(image, weight)
        if solved is not None:
            losses = [problem.loss(image).item(), problem.loss(solved).item()]
            return Minimum(solved, [losses], ["threshold"], [None])
    return gauss_newton(problem, image, weight, max_iters)


def border_spread(problem: InverseProblem, image: Tensor, settings: PixelSettings | RefineSettings) -> list[Spread]:
    """The larger errors towards a border beyond which the image extends; none where it does not."""
    if problem.unmeasured is None:
        return []
    deviation = settings.border_deviation * problem.unmeasured.to(image)
    return [(deviation, gaussian_blur(settings.border_correlation, image))]


def spread_out(spreads: Sequence[Spread], u: Tensor) -> Tensor:
    """The sum of ``deviation * blur(part)`` over the parts of u (N, C, H, W), as (1, C, H, W)."""
    parts = zip(spreads, u.split(1), strict=True)
    return torch.stack([deviation * blur(part) for (deviation, blur), part in parts]).sum(0)


def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


def estimated_deviation(problem: InverseProblem, image: Tensor, blur: Map) -> float:
    r"""Return the tau for which the residual of ``image`` (1, C, H, W) is as large as expected (empirical Bayes).

    With A linear about x0, and J its derivative, a true image x0 + tau S u and noise of root mean square s leave

        E ||y - A(x0)||^2 = tau^2 E ||J S u||^2 + m s^2

    over the m entries. One u, the same for every image, stands for the expectation. At least `LEAST_DEVIATION`.
    """
    probe = torch.randn(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    linear = linearised(problem, image)
    gain = linear.forward(blur(probe.to(image))).square().mean().item()
    excess = linear.residual.square().mean().item() - problem.noise_levels(1)[0] ** 2
    return (excess / gain) ** 0.5 if gain and excess > LEAST_DEVIATION**2 * gain else LEAST_DEVIATION


def _seen_from(problem: InverseProblem, image: Tensor, spread: Map) -> InverseProblem:
    """The problem of u, where x = image + spread(u), and ``spread`` is linear."""

    def operator_fn(u: Tensor, **state: Tensor) -> Tensor:
        return problem.operator_fn(spread(u) if problem.linear else image + spread(u), **state)

    with torch.no_grad():
        measurement = problem.measurement - problem.predict(image) if problem.linear else problem.measurement
    return replace(problem, measurement=measurement, operator_fn=operator_fn, proximal_fn=None)


def gaussian_blur(deviation: float, like: Tensor) -> Map:
    """Return a separable blur of images such as ``like`` (B, C, H, W) that keeps the variance of white noise; zeros are
    outside."""
    radius = max(round(4 * deviation), 1)
    positions = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (positions / deviation) ** 2)
    kernel /= kernel.norm()
    weight = kernel.to(like).view(1, 1, 1, -1).repeat(like.shape[1], 1, 1, 1)

    def blur(x: Tensor) -> Tensor:
        x = torch.nn.functional.conv2d(x, weight, padding=(0, radius), groups=x.shape[1])
        return torch.nn.functional.conv2d(x, weight.mT, padding=(radius, 0), groups=x.shape[1])

    return blur


def gauss_newton(problem: InverseProblem, image: Tensor, weight: float, max_iters: int) -> Minimum:
    """Minimise ``||y - A(x)||^2 + weight ||x - image||^2`` over x (1, C, H, W), from ``image``."""
    losses: list[float] = []
    x, stop = image.detach(), "limit"

    def objective(x: Tensor) -> float:
        with torch.no_grad():
            return float(problem.loss(x) * problem.entries + weight * (x - image).square().sum())

    now = objective(x)
    while len(losses) < max_iters:
        linear = linearised(problem, x)
        step, found = conjugate_gradients(linear, weight, weight * (image - x), max_iters - len(losses))
        losses += found
        with torch.no_grad():
            candidates = (x + step / 2**halving for halving in range(HALVINGS))
            there, then = next(((c, value) for c in candidates if (value := objective(c)) < now), (x, now))
        gain, x, now = now - then, there, then
        if problem.linear or gain <= SETTLED * now:
            stop = "threshold" if len(losses) < max_iters else "limit"
            break
    with torch.no_grad():
        losses.append(problem.loss(x).item())
    return Minimum(x, [losses], [stop], [None])


@dataclass(frozen=True)
class Linearised:
    """``A(x + d) = A(x) + J d``: what is left to explain, y - A(x), with J and its adjoint."""

    residual: Tensor
    forward: Map
    adjoint: Map


def linearised(problem: InverseProblem, x: Tensor) -> Linearised:
    """A about x. Its adjoint is the backward pass; its derivative, where A is not linear, the backward pass of that, or
    a central difference where A can be differentiated only once."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        predicted = problem.predict(x)
        probe = torch.zeros_like(predicted, requires_grad=True)
        (back,) = torch.autograd.grad(predicted, x, probe, create_graph=True)

    def adjoint(v: Tensor) -> Tensor:
        return torch.autograd.grad(predicted, x, v, retain_graph=True)[0]

    def derivative(d: Tensor) -> Tensor:
        return torch.autograd.grad(back, probe, d, retain_graph=True)[0]

    def difference(d: Tensor) -> Tensor:
        step = DIFFERENCE / d.abs().max().clamp_min(torch.finfo(d.dtype).tiny)
        with torch.no_grad():
            return (problem.predict(x + step * d) - problem.predict(x - step * d)) / (2 * step)

    def forward(d: Tensor) -> Tensor:
        with torch.no_grad():
            return problem.predict(d)

    residual = (problem.measurement - predicted).detach()
    if problem.linear:
        return Linearised(residual, forward, adjoint)
    return Linearised(residual, derivative if twice_differentiable(back, probe) else difference, adjoint)


def twice_differentiable(back: Tensor, probe: Tensor) -> bool:
    """Tell whether the gradient ``back`` can itself be differentiated, by what it was multiplied with."""
    try:
        (found,) = torch.autograd.grad(back, probe, torch.zeros_like(back), retain_graph=True, allow_unused=True)
    except RuntimeError:  # as torch says it, where there is no formula or `once_differentiable` forbids it
        return False
    return found is not None


def conjugate_gradients(linear: Linearised, weight: float, pull: Tensor, max_iters: int) -> tuple[Tensor, list[float]]:
    """Solve ``(J^T J + weight) d = J^T residual + pull`` for d.

    Returns:
        d, and the mean squared residuals ``|| residual - J d ||^2`` before each iteration.
    """
    d, left = torch.zeros_like(pull), linear.residual
    remainder = linear.adjoint(left) + pull
    direction, size = remainder, remainder.square().sum()
    enough = TOLERANCE**2 * float(size)
    losses: list[Tensor] = []
    while len(losses) < max_iters and (float(size) > enough or not losses):
        losses.append(left.square().mean())
        image = linear.forward(direction)
        curved = linear.adjoint(image) + weight * direction
        length = size / (direction * curved).sum().clamp_min(torch.finfo(size.dtype).tiny)
        d, left, remainder = d + length * direction, left - length * image, remainder - length * curved
        before, size = size, remainder.square().sum()
        direction = remainder + size / before.clamp_min(torch.finfo(size.dtype).tiny) * direction
    return d, torch.stack(losses).tolist() if losses else []
