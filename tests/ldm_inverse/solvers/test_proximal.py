"""The exact pixel step, against the normal equations solved with matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm_inverse.measurements import get_operator
from ldm_inverse.solvers.fit import encoded
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.proximal import LEAST_DEVIATION, estimated_deviation, gaussian_blur, identity, proximal
from ldm_inverse.solvers.resample_settings import PixelSettings, ResampleSettings
from util.errors import UserError

SHAPE = (1, 3, 8, 8)
SIGMA, DEVIATION = 0.05, 0.3


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(**changes):
    return PixelSettings(method="exact", **{"deviation": DEVIATION, "max_iters": 500, **changes})


def matrix(linear, shape=SHAPE):
    """The matrix of a linear function of images."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.stack([linear(column.view(shape)).flatten() for column in basis], dim=1)


def minimum(a, y, x0, sigma=SIGMA):
    """``argmin ||y - A x||^2 / sigma^2 + ||x - x0||^2 / deviation^2``."""
    normal = a.T @ a / sigma**2 + torch.eye(a.shape[1], dtype=torch.float64) / DEVIATION**2
    return torch.linalg.solve(normal, a.T @ y.flatten() / sigma**2 + x0.flatten() / DEVIATION**2).view(x0.shape)


def mask(seed=3):
    return (randn(1, 1, 8, 8, seed=seed) > 0).double()


KERNEL = np.random.RandomState(0).rand(3, 5)
OPERATORS = {
    "inpainting": (lambda: get_operator("inpainting"), {"mask": mask()}),
    "noise": (lambda: get_operator("noise"), {}),
    "super_resolution": (lambda: get_operator("super_resolution", in_shape=SHAPE, scale_factor=2).double(), {}),
    "gaussian_blur": (lambda: get_operator("gaussian_blur", kernel_size=5, intensity=1.0).double(), {}),
    "circular_blur": (
        lambda: get_operator("motion_blur", kernel=KERNEL, boundary="circular").double(),
        {},
    ),
    "colourisation": (lambda: get_operator("colourisation").double(), {}),
}


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("name", OPERATORS)
def test_it_is_the_minimum_for_every_kind_of_linear_operator(name, closed):
    make, state = OPERATORS[name]
    operator = make()
    x0 = randn(*SHAPE, seed=1)
    y = operator(randn(*SHAPE), **state)
    y = y + SIGMA * randn(*y.shape, seed=2)
    closed_form = operator.proximal if closed else None
    problem = InverseProblem(y, operator.forward, noise_sigma=SIGMA, state=state, linear=True, proximal_fn=closed_form)
    found = proximal(problem, x0, exact())
    want = minimum(matrix(lambda x: operator(x, **state)), y, x0)
    assert (found.x - want).norm() < 2e-3 * (want - x0).norm()
    assert found.losses[0][0] == pytest.approx((y - operator(x0, **state)).square().mean().item())
    assert found.losses[0][-1] == pytest.approx((y - operator(found.x, **state)).square().mean().item())
    assert found.stops == ["threshold"]
    if closed and operator.proximal(y, x0, 1.0, **state) is not None:
        assert torch.allclose(found.x, want, atol=1e-12)
        assert len(found.losses[0]) == 2


def test_masks_and_circular_blurs_have_a_closed_form():
    problem = InverseProblem(randn(*SHAPE), lambda x, mask: x * mask, state={"mask": mask()})
    assert problem.proximal(randn(*SHAPE), 1.0) is None
    assert get_operator("inpainting").proximal(randn(*SHAPE), randn(*SHAPE), 1.0, mask=mask()) is not None
    for name, known in (("circular_blur", True), ("gaussian_blur", False)):
        assert (OPERATORS[name][0]().proximal(randn(*SHAPE), randn(*SHAPE), 1.0) is not None) == known


def test_it_needs_tens_of_iterations_where_adamw_needs_thousands():
    operator = OPERATORS["super_resolution"][0]()
    truth, x0 = 0.3 * randn(*SHAPE), 0.3 * randn(*SHAPE, seed=1)
    y = operator(truth) + SIGMA * randn(1, 3, 4, 4, seed=2)
    problem = InverseProblem(y, operator.forward, noise_sigma=SIGMA, linear=True)
    found = proximal(problem, x0, exact())
    assert len(found.losses[0]) < 30
    assert found.losses[0][-1] < SIGMA**2


@pytest.mark.parametrize("correlation", [0.0, 1.0])
@pytest.mark.parametrize("true_deviation", [0.05, 0.4])
def test_the_estimated_deviation_is_that_of_the_estimates_error(correlation, true_deviation):
    side = (1, 3, 64, 64)
    operator = get_operator("gaussian_blur", kernel_size=5, intensity=1.0).double()
    x0 = 0.3 * randn(*side, seed=1)
    blur = gaussian_blur(correlation, x0) if correlation else identity
    y = operator(x0 + true_deviation * blur(randn(*side, seed=4)))
    y = y + SIGMA * randn(*y.shape, seed=2)
    problem = InverseProblem(y, operator.forward, noise_sigma=SIGMA, linear=True)
    # 12,288 numbers, blurred over about 10 of them: the estimate's own error is a few hundredths.
    assert estimated_deviation(problem, x0, blur) == pytest.approx(true_deviation, rel=0.15)
    given = proximal(problem, x0, exact(deviation=estimated_deviation(problem, x0, blur), correlation=correlation))
    estimated = exact(deviation="auto", correlation=correlation)
    assert torch.equal(proximal(problem, x0, estimated).x, given.x)
    bound = proximal(problem, x0, exact(deviation=0.02, correlation=correlation))
    assert torch.equal(proximal(problem, x0, estimated, most=0.02).x, bound.x)


def test_the_estimated_deviation_heeds_the_dropped_entries_and_the_slope():
    side = (1, 3, 64, 64)
    kept = (randn(1, 1, 64, 64, seed=3) > 0.5).double()
    x0 = 0.3 * randn(*side, seed=1)
    y = (x0 + 0.2 * randn(*side, seed=4) + SIGMA * randn(*side, seed=2)) * kept
    state, share = {"mask": kept}, kept.mean().item()
    operator_fn = get_operator("inpainting").forward
    problem = InverseProblem(y, operator_fn, noise_sigma=SIGMA, noisy_share=share, state=state, linear=True)
    assert estimated_deviation(problem, x0, identity) == pytest.approx(0.2, rel=0.1)
    y = 5 * (x0 + 0.01 * randn(*side, seed=4)).sin()
    steep = InverseProblem(y, lambda x: 5 * x.sin(), noise_sigma=0.0)
    assert estimated_deviation(steep, x0, identity) == pytest.approx(0.01, rel=0.1)


def test_an_estimate_within_the_noise_is_believed():
    x0 = 0.3 * randn(*SHAPE, seed=1)
    problem = InverseProblem(x0, lambda x: 1.0 * x, noise_sigma=SIGMA, linear=True)
    assert estimated_deviation(problem, x0, identity) == LEAST_DEVIATION
    nothing = InverseProblem(x0 + 1, lambda x: 0 * x, noise_sigma=SIGMA, linear=True)
    assert estimated_deviation(nothing, x0, identity) == LEAST_DEVIATION


def test_where_the_operator_is_not_linear_the_gradient_vanishes():
    """Gauss-Newton ends where ``J^T (y - A(x)) / sigma^2 = (x - x0) / deviation^2``."""

    def operator_fn(x):
        return torch.tanh(2 * x) + 0.3 * x.roll(1, -1) ** 2

    x0 = 0.4 * randn(*SHAPE, seed=1)
    y = operator_fn(x0 + 0.2 * randn(*SHAPE)) + SIGMA * randn(*SHAPE, seed=2)
    problem = InverseProblem(y, operator_fn, noise_sigma=SIGMA)
    found = proximal(problem, x0, exact())

    def gradient(x):
        x = x.detach().requires_grad_()
        energy = (y - operator_fn(x)).square().sum() / SIGMA**2 + (x - x0).square().sum() / DEVIATION**2
        return torch.autograd.grad(energy, x)[0].norm()

    assert gradient(found.x) < 0.02 * gradient(x0)
    assert found.losses[0][-1] < 1.5 * SIGMA**2
    assert found.losses[0][0] > 10 * found.losses[0][-1]


class OnceDifferentiable(torch.autograd.Function):
    """tanh, whose gradient has no gradient, as in many operators of users."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


def test_an_operator_that_can_be_differentiated_once_does_as_well():
    x0 = 0.4 * randn(*SHAPE, seed=1)
    y = (x0 + 0.2 * randn(*SHAPE)).tanh()
    found, wanted = (
        proximal(InverseProblem(y, operator_fn, noise_sigma=SIGMA), x0, exact(deviation="auto"))
        for operator_fn in (OnceDifferentiable.apply, torch.tanh)
    )
    assert (found.x - wanted.x).abs().max() < 1e-3 * (wanted.x - x0).abs().max()


def test_the_magnitudes_of_a_transform_are_explained_too():
    operator = get_operator("phase_retrieval", oversample=1.0).double()
    truth = 0.5 * randn(*SHAPE)
    x0 = truth + 0.05 * randn(*SHAPE, seed=1)
    y = operator(truth)
    found = proximal(InverseProblem(y, operator.forward, noise_sigma=0.005), x0, exact())
    assert (found.x - truth).norm() < 0.3 * (x0 - truth).norm()


def test_each_image_of_a_batch_is_solved_for_on_its_own():
    operator = OPERATORS["gaussian_blur"][0]()
    x0, y = randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=1)
    both = proximal(InverseProblem(y, operator.forward, noise_sigma=(0.05, 0.5), linear=True), x0, exact())
    for row, sigma in enumerate((0.05, 0.5)):
        own = slice(row, row + 1)
        alone = proximal(InverseProblem(y[own], operator.forward, noise_sigma=sigma, linear=True), x0[own], exact())
        assert torch.equal(both.x[own], alone.x)
        assert both.losses[row] == alone.losses[0]
    assert len(both.losses[0]) != len(both.losses[1])


def test_it_ends_at_its_limit():
    operator = OPERATORS["gaussian_blur"][0]()
    problem = InverseProblem(randn(*SHAPE), operator.forward, noise_sigma=1e-3, linear=True)
    found = proximal(problem, randn(*SHAPE, seed=1), exact(max_iters=3))
    assert found.stops == ["limit"]
    assert len(found.losses[0]) == 3 + 1


def test_noise_of_unknown_level_is_refused():
    with pytest.raises(UserError, match=r"pixel.method: exact"):
        ResampleSettings(pixel=PixelSettings(method="exact")).check_noise_level(None)


@pytest.mark.parametrize("linear", [True, False])
def test_errors_that_go_together_have_the_covariance_of_the_blur(linear):
    """Against the mean of the Gaussian posterior; a linear operator that does not say so takes the other path."""
    state = {"mask": mask()}
    operator = get_operator("inpainting")
    y, x0 = operator(randn(*SHAPE, seed=1), **state), randn(*SHAPE, seed=2)
    problem = InverseProblem(y, operator.forward, noise_sigma=SIGMA, state=state, linear=linear)
    found = proximal(problem, x0, exact(correlation=1.2)).x
    a, s = matrix(lambda x: operator(x, **state)), matrix(gaussian_blur(1.2, x0))
    prior = DEVIATION**2 * s @ s.T
    gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + SIGMA**2 * torch.eye(len(a), dtype=torch.float64))
    want = x0 + (gain @ (y - operator(x0, **state)).flatten()).view(SHAPE)
    assert (found - want).abs().max() < 1e-3 * (want - x0).abs().max()


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_towards_an_unknown_border_the_errors_are_larger(correlation):
    """Nothing is more probable, where the prior's covariance has the border's part besides."""
    outside = torch.linspace(1, 0, 8, dtype=torch.float64).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    operator = OPERATORS["gaussian_blur"][0]()
    y, x0 = operator(randn(*SHAPE, seed=1)), randn(*SHAPE, seed=2)
    problem = InverseProblem(y, operator.forward, noise_sigma=SIGMA, linear=True, unmeasured=outside)
    settings = exact(correlation=correlation, border_deviation=0.5, border_correlation=1.5)
    a, border = matrix(operator), matrix(lambda u: 0.5 * outside * gaussian_blur(1.5, x0)(u))
    own = DEVIATION * matrix(gaussian_blur(correlation, x0) if correlation else identity)
    prior = own @ own.T + border @ border.T

    def energy(x):
        moved = (x - x0).flatten()
        return (y - operator(x)).square().sum() / SIGMA**2 + moved @ torch.linalg.solve(prior, moved)

    gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + SIGMA**2 * torch.eye(len(a), dtype=torch.float64))
    least = energy(x0 + (gain @ (y - operator(x0)).flatten()).view(SHAPE))
    assert least <= energy(proximal(problem, x0, settings).x) < 1.0001 * least
    assert energy(proximal(replace(problem, unmeasured=None), x0, settings).x) > 1.005 * least


def test_draws_have_the_mean_and_the_covariance_of_the_posterior():
    """With few pixels, from the matrices of the Gaussian posterior: every number within five standard errors."""
    count, side = 800, (3, 4)
    a, s = 0.4 * randn(9, 12, seed=1), matrix(gaussian_blur(0.7, randn(1, 1, *side)), (1, 1, *side))
    y, x0 = randn(1, 9, seed=2), randn(1, 1, *side, seed=3)

    def operator_fn(x):
        return x.flatten(1) @ a.T

    problem = InverseProblem(y, operator_fn, noise_sigma=SIGMA, linear=True)
    noise = randn(count, 1, *side, seed=4), randn(count, 9, seed=5)
    draws = proximal(problem, x0.expand(count, -1, -1, -1), exact(correlation=0.7), noise).x.flatten(1)
    prior = DEVIATION**2 * s @ s.T
    gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + SIGMA**2 * torch.eye(9, dtype=torch.float64))
    mean = x0.flatten() + gain @ (y - operator_fn(x0)).flatten()
    covariance = prior - gain @ a @ prior
    scale = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean) / scale).abs().max() < 5 / count**0.5
    assert ((draws.T.cov() - covariance) / torch.outer(scale, scale)).abs().max() < 5 * (2 / count) ** 0.5


class ShrinkingAutoencoder:
    """Decodes a latent to three quarters of itself, and encodes an image as it is: each correction takes off a quarter
    of what is wrong."""

    def encode_mode(self, x):
        return x

    def decode_first_stage(self, z, force_not_quantize=False):
        return 0.75 * z


@pytest.mark.parametrize("corrections", [0, 1, 3])
def test_corrections_lead_to_the_latent_that_decodes_to_the_image(corrections):
    image = randn(*SHAPE)
    z = encoded(ShrinkingAutoencoder(), image, corrections)
    assert torch.allclose(0.75 * z - image, -(0.25 ** (corrections + 1)) * image)
