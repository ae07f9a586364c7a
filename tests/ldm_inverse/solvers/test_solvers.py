"""The other posterior samplers on a Gaussian prior, where their steps and the posterior are known in closed form."""

from dataclasses import replace

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.levels import LevelTable
from ldm.models.diffusion.prior import DDIMSchedule, LatentPrior
from ldm_inverse.solvers import sitcom
from ldm_inverse.solvers.daps import DAPSSettings, curvature, langevin
from ldm_inverse.solvers.dps import DPSSettings, soft_step
from ldm_inverse.solvers.observer import StepEnded
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.psld import PSLDSettings, glued, sample_psld
from ldm_inverse.solvers.resample_settings import ResampleSettings
from ldm_inverse.solvers.sampler_run import SamplerRun
from ldm_inverse.solvers.samplers import POSTERIOR_SAMPLERS
from ldm_inverse.solvers.sitcom import InputSettings, SITCOMSettings
from tests.ldm.gaussian import GaussianLatents, soft_step_of
from util.errors import UserError
from util.settings import read

SHAPE = (3, 2, 2)
GAIN = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.0, 0.3, 0.0], dtype=torch.float64).reshape(SHAPE)
MASK = (GAIN > 0).double()


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(unit=False):
    variance = torch.ones(SHAPE).double() if unit else 0.2 + randn(*SHAPE, seed=1).abs()
    return GaussianLatents(randn(*SHAPE), variance)


def measured(model, y, gain, sigma=0.05):
    def operator_fn(x):
        return gain * x

    return InverseProblem(y, operator_fn, soft_step_of(model, operator_fn), sigma)


def prior_of(model, steps=10, generator=None):
    return LatentPrior(model, DDIMSchedule.of(model.alphas_cumprod, steps), generator=generator)


def tweedie(model, z, a):
    """The clean estimate and its derivative."""
    slope = a**0.5 * model.variance / model.marginal(a)
    return model.mean + slope * (z - a**0.5 * model.mean), slope


def solve(model, sampler, settings, problem, steps=20, batch=2, generator=None, eta=0.0):
    return DDIMSampler(model).posterior_sampler(
        problem.measurement,
        problem.condition_fn,
        problem.operator_fn,
        steps,
        batch,
        SHAPE,
        sampler,
        eta=eta,
        settings=settings,
        generator=generator or torch.Generator().manual_seed(5),
        noise_sigma=problem.noise_sigma,
        verbose=False,
    )[0]


# DPS and PSLD: single steps.


@pytest.mark.parametrize("through_unet", [True, False])
def test_a_soft_step_is_down_the_gradient_through_the_unet_or_with_it_held_constant(through_unet):
    model, z, y = gaussian(), randn(2, *SHAPE, seed=3), randn(2, *SHAPE, seed=4)
    prior, index = prior_of(model), 6
    a = prior.schedule.alphas[index]
    found, x0, norm = soft_step(prior, measured(model, y, GAIN), z, index, 0.7, "exact", through_unet)
    estimate, slope = tweedie(model, z, a)
    residual = y - GAIN * estimate
    length = residual.flatten(1).norm(dim=1)
    derivative = slope if through_unet else a**-0.5
    step = 0.7 * derivative * GAIN * residual / length.reshape(-1, 1, 1, 1)
    assert torch.allclose(x0, estimate)
    assert torch.allclose(norm, length)
    assert torch.allclose(found, prior.ddim_step(z, index).x_prev + step, atol=1e-12)


def test_the_glued_image_has_what_is_measured_from_the_measurement():
    x, y = randn(2, *SHAPE).requires_grad_(), randn(2, *SHAPE, seed=1)
    problem = measured(gaussian(), y, GAIN)
    assert torch.allclose(glued(problem, x), GAIN * y + (1 - GAIN**2) * x)
    (gradient,) = torch.autograd.grad(glued(problem, x).sum(), x)
    assert torch.allclose(gradient, (1 - GAIN**2).expand_as(x))  # through the residual too


def test_a_step_of_psld_is_its_formula():
    model, y = gaussian(), randn(2, *SHAPE, seed=4)
    prior = prior_of(model, 3)
    settings = PSLDSettings(scale=0.6, gluing=0.4)
    states, z, problem = [], randn(2, *SHAPE, seed=3), InverseProblem(y, lambda x: GAIN * x)
    run = SamplerRun(
        prior.schedule, problem, 2, lambda e: states.append(e.state.latent) if isinstance(e, StepEnded) else 0
    )
    sample_psld(prior, problem, z, settings, run)
    for index in (2, 1, 0):
        estimate, slope = tweedie(model, z, prior.schedule.alphas[index])
        residual = y - GAIN * estimate
        seam = GAIN * residual  # z0 - E(D(z0) + A^T (y - A D(z0))), but for its sign
        lengths = [part.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) for part in (residual, seam)]
        step = slope * (0.6 * GAIN * residual / lengths[0] + 0.4 * GAIN**2 * seam / lengths[1])
        z = prior.ddim_step(z, index).x_prev + step
        assert torch.allclose(z, states[2 - index], atol=1e-10)


def test_where_the_operator_is_a_projection_and_nothing_is_lost_psld_is_dps_with_a_longer_step():
    """E(D(z)) = z and A^T A = A: the seam is then the residual."""
    model, y = gaussian(), MASK * randn(1, *SHAPE, seed=4)
    problem = measured(model, y, MASK)
    dps = DPSSettings(scale=0.5, weight="constant", through_unet=True, tweedie="exact")
    psld = PSLDSettings(scale=0.3, gluing=0.2)
    assert torch.allclose(*(solve(model, *both, problem) for both in (("dps", dps), ("psld", psld))), atol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [("dps", DPSSettings(weight="constant", through_unet=True, tweedie="exact", scale=1)), ("psld", PSLDSettings())],
)
def test_what_is_not_measured_stays_with_the_prior(sampler, settings):
    """Latents are independent here, so the unmeasured ones go where plain sampling leads them."""
    model, y = gaussian(), MASK * randn(1, *SHAPE, seed=4)
    found = solve(model, sampler, settings, measured(model, y, MASK), steps=50)
    plain, _ = DDIMSampler(model).sample(50, 2, SHAPE, verbose=False, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(((1 - MASK) * found), (1 - MASK) * plain, atol=1e-10)
    assert (MASK * (found - y)).norm() < 0.25 * (MASK * (plain - y)).norm()


@pytest.mark.parametrize("quantise", [True, False])
def test_dps_decodes_through_the_codebook_or_without(quantise):
    """The soft step is a conditioning method's, which is told only where it is to leave the codebook out."""
    model, told = gaussian(), []
    problem = measured(model, randn(1, *SHAPE, seed=4), GAIN)

    def condition_fn(**keywords):
        told.append(keywords.pop("quantise", True))
        return problem.condition_fn(**keywords)

    solve(model, "dps", DPSSettings(quantise=quantise), replace(problem, condition_fn=condition_fn), steps=3)
    assert told == [quantise] * 3


# DAPS.


def test_daps_samples_the_posterior():
    model, count, sigma = gaussian(unit=True), 1000, 0.5
    y = MASK * (1 + randn(1, *SHAPE, seed=4))
    settings = DAPSSettings(ode_steps=1, iterations=120, lr=0.06)
    z = solve(model, "daps", settings, measured(model, y, MASK, sigma), steps=20, batch=count)
    precision = 1 + MASK / sigma**2
    mean = (model.mean + MASK * y / sigma**2) / precision
    deviations = (z - mean) * precision.sqrt()
    assert (deviations.mean(0) * count**0.5).abs().max() < 4.5
    assert (deviations.var(0) - 1).abs().max() < 5 * (2 / count) ** 0.5
    assert (deviations.var(0).mean() - 1).abs() < 0.04  # the Langevin step's bias is half its length


def test_langevin_steps_have_the_products_mean_and_variance():
    model, count, sigma = gaussian(), 2000, 0.2
    prior = prior_of(model, generator=torch.Generator().manual_seed(0))
    clean, y = randn(1, *SHAPE, seed=2).expand(count, -1, -1, -1), randn(1, *SHAPE, seed=3)
    level = LevelTable.of(model.alphas_cumprod).at(300)
    settings = DAPSSettings(iterations=900, lr=0.05, deviation=0.7)
    found = langevin(prior, measured(model, y, GAIN, sigma), clean, level, settings)
    closeness = (level.alpha / level.sigma) ** 2 + 1 / 0.49
    precision = closeness + GAIN**2 / sigma**2
    mean = (closeness * clean[0] + GAIN * y[0] / sigma**2) / precision
    deviations = (found.x - mean) * precision.sqrt()
    assert (deviations.mean(0) * count**0.5).abs().max() < 4.5
    gradient = GAIN * (GAIN * clean[0] - y[0])  # times sigma^-2
    step = 0.05 / (closeness + (GAIN**2 * gradient).norm() / gradient.norm() / sigma**2) * precision
    assert (deviations.var(0) * (1 - step / 2) - 1).abs().max() < 5 * (2 / count) ** 0.5  # of a chain with finite steps
    assert [len(losses) for losses in found.losses] == [900] * count
    assert found.losses[0][0] == pytest.approx((y - GAIN * clean[:1]).square().mean().item())


def test_inertia_leaves_mean_and_variance_and_takes_shallow_directions_further():
    model, count, sigma = gaussian(), 2000, 0.2
    clean, y = randn(1, *SHAPE, seed=2).expand(count, -1, -1, -1), randn(1, *SHAPE, seed=3)
    level = LevelTable.of(model.alphas_cumprod).at(300)
    closeness = (level.alpha / level.sigma) ** 2 + 1
    precision = closeness + GAIN**2 / sigma**2
    mean = (closeness * clean[0] + GAIN * y[0] / sigma**2) / precision

    def deviations(momentum, iterations):
        prior = prior_of(model, generator=torch.Generator().manual_seed(0))
        settings = DAPSSettings(iterations=iterations, lr=0.02, momentum=momentum)
        return (langevin(prior, measured(model, y, GAIN, sigma), clean, level, settings).x - mean) * precision.sqrt()

    long = deviations(0.8, 800)
    assert (long.mean(0) * count**0.5).abs().max() < 4.5
    assert (long.var(0) - 1).abs().max() < 5 * (2 / count) ** 0.5 + 0.05  # and a part for the finite steps
    shallow = GAIN == 0.3
    assert deviations(0.8, 150).mean(0)[shallow].abs() < 0.8 * deviations(0.0, 150).mean(0)[shallow].abs()


def test_the_curvature_is_that_along_the_gradient_of_each_sample():
    gain = torch.tensor([4.0, 1.0], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    found = curvature(lambda x: gain * x, x, gain * x)
    assert found.flatten().tolist() == pytest.approx([4, 1, (16**2 + 4**2) ** 0.5 / (4**2 + 4**2) ** 0.5, 0])


def test_without_a_deviation_of_the_latents_r_is_the_papers():
    """r = sigma / alpha then: with nothing measured, the variance is r^2."""
    model, count = gaussian(), 2000
    prior = prior_of(model, generator=torch.Generator().manual_seed(0))
    clean = randn(1, *SHAPE, seed=2).expand(count, -1, -1, -1)
    level = LevelTable.of(model.alphas_cumprod).at(200)
    nothing = measured(model, torch.zeros(1, *SHAPE).double(), torch.zeros(SHAPE).double(), sigma=10.0)
    x = langevin(prior, nothing, clean, level, DAPSSettings(iterations=100, lr=0.1, deviation=None)).x
    variance = (x - clean).var() * (1 - 0.1 / 2)
    assert variance.item() == pytest.approx((level.sigma / level.alpha) ** 2, rel=0.05)


# SITCOM.


def test_the_input_that_sitcom_finds_is_the_minimum():
    model, z, y = gaussian(), randn(2, *SHAPE, seed=3), randn(2, *SHAPE, seed=4)
    prior, index = prior_of(model), 6
    settings = SITCOMSettings(input=InputSettings(max_iters=700, eps=1e-9, lr=0.02), closeness=0.3)
    found = sitcom.fit_input(prior, measured(model, y, GAIN), z, index, settings)
    estimate, slope = tweedie(model, z, prior.schedule.alphas[index])
    moved = GAIN * slope * (y - GAIN * estimate) / ((GAIN * slope) ** 2 + 0.3)
    assert torch.allclose(found.x, z + moved, atol=2e-3)
    assert found.losses[0][0] == pytest.approx((y - GAIN * estimate)[0].square().mean().item())


# All.

EXPLAINING = {
    "dps": DPSSettings(weight="constant", through_unet=True, tweedie="exact", scale=0.3),
    "psld": PSLDSettings(scale=0.3),
    "daps": DAPSSettings(ode_steps=2, iterations=40),
    "sitcom": SITCOMSettings(input=InputSettings(lr=0.05)),
    "resample": read(ResampleSettings, {"latent": {"lr": 0.05}, "pixel": {"lr": 0.05}, "tweedie": "exact"}),
}


def test_every_sampler_that_samples_is_here():
    assert {name for name in POSTERIOR_SAMPLERS.names() if POSTERIOR_SAMPLERS.get(name).sample} == EXPLAINING.keys()


@pytest.mark.parametrize("sampler", EXPLAINING)
def test_it_explains_the_measurement(sampler):
    model, sigma = gaussian(unit=True), 0.05
    y = MASK * (model.mean + randn(1, *SHAPE, seed=4) + sigma * randn(1, *SHAPE, seed=6))
    z = solve(model, sampler, EXPLAINING[sampler], measured(model, y, MASK, sigma), steps=50, batch=4)
    rms = (MASK * (z - y)).flatten(1).square().sum(1).div(MASK.sum()).sqrt()
    assert rms.max() < 3 * sigma  # of a sample of the prior it is more than 1
    assert ((1 - MASK) * (z - model.mean)).abs().max() < 4


@pytest.mark.parametrize("sampler", EXPLAINING)
def test_no_parameter_of_the_model_gets_a_gradient(sampler):
    model = gaussian()
    solve(model, sampler, EXPLAINING[sampler], measured(model, randn(1, *SHAPE), MASK), steps=12)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("sampler", EXPLAINING)
def test_another_samplers_settings_are_refused(sampler):
    model = gaussian()
    other = DPSSettings() if sampler == "resample" else ResampleSettings()
    with pytest.raises(UserError, match=f"{sampler}.*{type(other).__name__}"):
        solve(model, sampler, other, measured(model, randn(1, *SHAPE), MASK))


@pytest.mark.parametrize("sampler", ["daps", "sitcom"])
def test_a_noise_level_that_must_be_known_and_is_not_is_told(sampler):
    model = gaussian()
    with pytest.raises(UserError, match="noise"):
        solve(model, sampler, POSTERIOR_SAMPLERS.get(sampler).settings(), measured(model, randn(1, *SHAPE), MASK, None))


@pytest.mark.parametrize(
    ("sampler", "settings", "told"),
    [
        ("dps", {"weight": "abr"}, "conditioning.dps.weight: expected 'abar' or 'constant', got 'abr'"),
        ("psld", {"glue": 1}, "did you mean 'gluing'"),
        ("daps", {"ode_steps": 0}, "conditioning.daps.ode_steps: expected a whole number, 1 or more, got 0"),
        ("daps", {"deviation": 0}, "conditioning.daps.deviation: expected a number above 0"),
        ("daps", {"momentum": 1}, "conditioning.daps.momentum: expected a number from 0 to below 1, got 1"),
        ("dps", {"quantise": 1}, "conditioning.dps.quantise: expected true or false, got 1"),
        ("sitcom", {"input": {"lrr": 1}}, "unknown setting of conditioning.sitcom.input 'lrr': did you mean 'lr'"),
        ("sitcom", {"refine": {"correlation": -1}}, "conditioning.sitcom.refine.correlation"),
    ],
)
def test_settings_that_cannot_be_are_told(sampler, settings, told):
    with pytest.raises(UserError, match=told):
        read(POSTERIOR_SAMPLERS.get(sampler).settings, settings, f"conditioning.{sampler}")
