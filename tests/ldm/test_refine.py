"""The last optimisation, over the decoded image, against the posterior in closed form."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.listeners import Listeners
from ldm.models.diffusion.posterior import InverseProblem
from ldm.models.diffusion.posterior_settings import RefineSettings
from ldm.models.diffusion.refine import gaussian_blur, refine
from ldm.models.diffusion.resample_settings import ResampleSettings, StageShares
from ldm.models.diffusion.solver import Solver
from ldm_inverse.operators import OPERATORS
from tests.tiny import CONFIG, SIDE

SHAPE = (1, 3, 8, 8)
SIGMA, TAU = 0.02, 0.05


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix(linear, shape=SHAPE):
    """The matrix of a linear function of images."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.stack([linear(column.view(shape)).flatten() for column in basis], dim=1)


@pytest.mark.parametrize("correlation", [0.1, 0.6, 1.5])
@pytest.mark.parametrize("name", ["super_resolution", "inpainting"])
def test_it_is_the_mean_of_the_gaussian_posterior(name, correlation):
    operator = {
        "super_resolution": lambda: OPERATORS.build("super_resolution", in_shape=SHAPE, scale_factor=2),
        "inpainting": lambda: OPERATORS.build(
            "inpainting", mask_type="random", mask_prob_range=(0.4, 0.6), image_size=8
        ),
    }[name]()
    state = {"mask": (randn(1, 1, 8, 8, seed=3) > 0).double()} if name == "inpainting" else {}
    truth, decoded = randn(*SHAPE), randn(*SHAPE, seed=1)

    def operator_fn(x):
        return operator(x, **state)

    y = operator_fn(truth) + SIGMA * randn(*operator_fn(truth).shape, seed=2)
    problem = InverseProblem(y, operator_fn, noise_sigma=SIGMA)
    found = refine(problem, decoded, RefineSettings(deviation=TAU, correlation=correlation, max_iters=500))

    a, s = matrix(operator_fn), matrix(gaussian_blur(correlation))
    prior = TAU**2 * s @ s.T
    gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + SIGMA**2 * torch.eye(len(a), dtype=torch.float64))
    want = decoded + (gain @ (y - operator_fn(decoded)).flatten()).view(SHAPE)
    assert (found.x - want).abs().max() < 1e-4 * (want - decoded).abs().max()


def test_the_blur_keeps_the_variance_of_white_noise():
    white = randn(1, 2, 400, 400)
    inner = gaussian_blur(1.5)(white)[..., 8:-8, 8:-8]
    assert inner.std().item() == pytest.approx(1, abs=0.02)
    neighbours = (inner[..., 1:] * inner[..., :-1]).mean() / inner.var()
    assert neighbours.item() == pytest.approx(torch.exp(torch.tensor(-1 / (4 * 1.5**2))).item(), abs=0.02)


def test_it_explains_what_is_not_linear():
    def operator_fn(x):
        return torch.sigmoid(2 * x)

    decoded = 0.5 * randn(*SHAPE)
    truth = decoded + TAU * randn(*SHAPE, seed=1)
    problem = InverseProblem(operator_fn(truth), operator_fn, noise_sigma=0.002)
    found = refine(problem, decoded, RefineSettings(deviation=TAU, correlation=0.2, max_iters=50))
    assert found.losses[0][0] > 20 * found.losses[0][-1]
    assert (found.x - truth).abs().mean() < 0.2 * TAU


def test_it_stops_at_its_limit_and_says_so():
    problem = InverseProblem(randn(*SHAPE), lambda x: x, noise_sigma=0.0)
    assert refine(problem, randn(*SHAPE, seed=1), RefineSettings(max_iters=1)).stops == ["limit"]
    assert refine(problem, randn(*SHAPE, seed=1), RefineSettings(max_iters=500)).stops == ["plateau"]


def test_a_restoration_ends_with_it_where_it_is_asked_for():
    torch.manual_seed(0)
    model = LatentDiffusion(**OmegaConf.create(CONFIG["model"]["params"])).eval().requires_grad_(False)
    problem = InverseProblem(torch.zeros(1, 3, SIDE, SIDE), lambda x: x, noise_sigma=0.01)
    plain = ResampleSettings(soft_step=False, stages=StageShares(plain=1, latent=0), final=False)
    events, images = [], []
    for settings in (plain, replace(plain, refine=RefineSettings(deviation=0.5))):
        solver = Solver(steps=2, settings=settings)
        generator = torch.Generator().manual_seed(0)
        images.append(solver.restore(model, problem, (1, 3, SIDE, SIDE), generator, Listeners(events.append)))
    decoded, refined = images
    assert [event.stage for event in events] == ["ddim", "ddim", "ddim", "ddim", "refine"]
    last = events[-1]
    assert (last.step, last.timestep) == (2, 0)
    assert last.iterations > 1
    assert last.first_loss == pytest.approx(decoded.square().mean().item(), rel=1e-5)
    assert last.last_loss == pytest.approx(refined.square().mean().item(), rel=1e-2)
    assert refined.square().mean() < 0.01 * decoded.square().mean()
