"""The last optimisation, over the decoded image, against the posterior in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm_inverse.operators import OPERATORS
from ldm_inverse.runs.measured_picture import MeasuredPicture
from ldm_inverse.solvers.observer import StageEnded
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.proximal import gaussian_blur
from ldm_inverse.solvers.refine import refine
from ldm_inverse.solvers.resample_settings import ResampleSettings, StageShares
from ldm_inverse.solvers.restore import restore
from ldm_inverse.solvers.settings import RefineSettings
from ldm_inverse.solvers.solver import Solver
from ldm_inverse.task import Task
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

    a, s = matrix(operator_fn), matrix(gaussian_blur(correlation, truth))
    prior = TAU**2 * s @ s.T
    gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + SIGMA**2 * torch.eye(len(a), dtype=torch.float64))
    want = decoded + (gain @ (y - operator_fn(decoded)).flatten()).view(SHAPE)
    assert (found.x - want).abs().max() < 1e-4 * (want - decoded).abs().max()


def test_where_little_is_measured_more_may_differ():
    """The closed form, where the first columns are measured in part, and errors of their own are added there."""
    seen = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    seen[..., :3] = torch.tensor([0.0, 0.3, 0.8])

    def operator_fn(x):
        return seen * x

    y = operator_fn(randn(*SHAPE)) + SIGMA * randn(*SHAPE, seed=2)
    problem = InverseProblem(y, operator_fn, noise_sigma=SIGMA, unmeasured=1 - seen)
    settings = RefineSettings(
        deviation=TAU, correlation=0.6, max_iters=200, border_deviation=0.4, border_correlation=1.5
    )
    found = refine(problem, randn(*SHAPE, seed=1), settings)

    a, fine, coarse = matrix(operator_fn), matrix(gaussian_blur(0.6, y)), matrix(gaussian_blur(1.5, y))
    added = 0.4 * matrix(lambda x: (1 - seen) * x) @ coarse
    prior = TAU**2 * fine @ fine.T + added @ added.T
    gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + SIGMA**2 * torch.eye(len(a), dtype=torch.float64))
    decoded = randn(*SHAPE, seed=1)
    want = decoded + (gain @ (y - operator_fn(decoded)).flatten()).view(SHAPE)
    assert (found.x - want).abs().max() < 1e-4 * (want - decoded).abs().max()


def test_it_goes_on_longer_where_the_border_is_unknown():
    problem, settings = InverseProblem(randn(*SHAPE), lambda x: x, noise_sigma=0.0), RefineSettings(max_iters=4)
    unknown = replace(problem, unmeasured=torch.zeros(1, 1, 8, 8))
    short, long = (len(refine(each, randn(*SHAPE, seed=1), settings).losses[0]) for each in (problem, unknown))
    assert short < 12 < long <= settings.most_passes(True)
    assert RefineSettings(max_iters=8).most_passes(True) - RefineSettings(max_iters=8).most_passes(False) == 30


def test_with_a_mask_each_kept_pixel_weighs_by_its_own_noise():
    """Nine of ten pixels dropped change nothing for the others: without correlation each is an average of its own."""
    task = Task(
        {"name": "inpainting", "mask_type": "random", "mask_prob_range": (0.9, 0.91)},
        {"name": "gaussian", "sigma": SIGMA},
    )
    truth, decoded = randn(1, 3, 16, 16), randn(1, 3, 16, 16, seed=1)
    measurement = task.measure(truth, *(np.random.RandomState(seed) for seed in (0, 1)))
    picture = MeasuredPicture("a", "a", task, measurement, truth.shape, (16, 16))
    problem = picture.problem(None, from_baseline=False)
    mask = measurement.state["mask"]
    assert problem.sigmas(1) == [SIGMA]
    assert problem.noise_levels(1) == [pytest.approx(SIGMA * mask.double().mean().item() ** 0.5)]
    found = refine(problem, decoded, RefineSettings(deviation=TAU, correlation=0.01, max_iters=500))
    share = TAU**2 / (TAU**2 + SIGMA**2)
    want = decoded + share * mask * (measurement.y - decoded)
    assert torch.allclose(found.x, want, atol=1e-4)


def test_the_blur_keeps_the_variance_of_white_noise():
    white = randn(1, 2, 400, 400)
    inner = gaussian_blur(1.5, white)(white)[..., 8:-8, 8:-8]
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
    problem = InverseProblem(torch.zeros(1, 3, SIDE, SIDE), lambda x: x, noise_sigma=0.01, size=(SIDE, SIDE))
    plain = ResampleSettings(soft_step=False, stages=StageShares(plain=1, latent=0), final=False)
    events, images = [], []
    for settings in (plain, plain.model_copy(update={"refine": RefineSettings(deviation=0.5)})):
        solver = Solver(steps=2, settings=settings)
        generator = torch.Generator().manual_seed(0)
        images.append(restore(model, problem, solver, events.append, generator))
    decoded, refined = images
    events = [event for event in events if isinstance(event, StageEnded)]
    assert [event.stage for event in events] == ["ddim", "ddim", "ddim", "ddim", "refine"]
    last = events[-1]
    assert (last.step, last.timestep) == (2, 0)
    assert last.iterations > 1
    assert last.first_loss == pytest.approx(decoded.square().mean().item(), rel=1e-5)
    assert last.last_loss == pytest.approx(refined.square().mean().item(), rel=1e-2)
    assert refined.square().mean() < 0.01 * decoded.square().mean()
