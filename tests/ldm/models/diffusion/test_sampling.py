"""The samplers of the prior against a Gaussian one, whose flow and whose marginals are known in closed form."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from ldm.models.diffusion.dpm_solver import (
    DPMSolverSettings,
    integrals,
    multistep,
    polynomial,
    predict_at,
    singlestep,
)
from ldm.models.diffusion.levels import LevelTable
from ldm.models.diffusion.prior import LatentPrior, standard_normal
from ldm.models.diffusion.prior_sampler import PRIOR_SAMPLERS
from ldm.models.diffusion.sampling import sample_prior
from tests.ldm.gaussian import random_gaussian
from util.errors import UserError
from util.settings import read

SHAPE = (3, 2, 2)


@pytest.fixture
def model():
    return random_gaussian(SHAPE)


def sample(model, sampler, steps, count=4, seed=0, **kwargs):
    return sample_prior(
        model, sampler, steps, (count, *SHAPE), torch.Generator().manual_seed(seed), dtype=torch.float64, **kwargs
    )


def randn(seed):
    """The noise that `sample` starts from with this seed."""
    return standard_normal((4, *SHAPE), torch.float64, torch.device("cpu"), torch.Generator().manual_seed(seed))


def exact_flow(model, z, now, then):
    """It scales the deviation from the mean as that of the marginal grows."""
    ratio = (model.marginal(then.alpha**2) / model.marginal(now.alpha**2)).sqrt()
    return then.alpha * model.mean + ratio * (z - now.alpha * model.mean)


def error(model, sampler, steps, **settings):
    found = sample(model, sampler, steps, settings=PRIOR_SAMPLERS.get(sampler).settings(**settings))
    ends = LevelTable.of(model.alphas_cumprod).spaced(1, "time")
    return (found - exact_flow(model, randn(0), *ends)).abs().max().item()


def orders(model, sampler, steps, **settings):
    errors = [error(model, sampler, steps * 2**k, **settings) for k in range(3)]
    return [np.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize("prediction", ["x0", "eps"])
@pytest.mark.parametrize("solve", [multistep, singlestep])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_converges_with_its_order(order, solve, prediction, model):
    # Between levels where no order's leading error happens to vanish, as it nearly does over the whole range.
    table, z = LevelTable.of(model.alphas_cumprod), randn(0)
    errors = []
    for steps in (40, 80, 160):
        levels = [table.at_log_snr(value) for value in np.linspace(-0.5, 1, steps + 1)]
        found = solve(partial(predict_at, LatentPrior(model), prediction), table, z, levels, order, prediction)
        errors.append((found - exact_flow(model, z, levels[0], levels[-1])).abs().max().item())
    assert [np.log2(coarse / fine) for coarse, fine in pairwise(errors)] == pytest.approx([order] * 2, abs=0.2)


@pytest.mark.parametrize("spacing", ["time", "quadratic"])
def test_dpm_solver_converges_over_every_spacing(spacing, model):
    assert orders(model, "dpm_solver", 200, spacing=spacing) == pytest.approx([2] * 2, abs=0.25)


def test_plms_converges_with_the_second_order_that_its_paper_proves(model):
    assert orders(model, "plms", 200) == pytest.approx([2] * 2, abs=0.2)
    assert error(model, "plms", 50) < error(model, "ddim", 200)


def test_dpm_solver_of_order_1_is_ddim(model):
    """Lu et al., 2022, section 4.1; over DDIM's own grid, whose steps are even in time."""
    steps = [sample(model, "dpm_solver", 999, settings=DPMSolverSettings(order=1, prediction=p)) for p in ("x0", "eps")]
    assert torch.allclose(steps[0], steps[1], atol=1e-10)
    assert torch.allclose(steps[0], sample(model, "ddim", 1000), atol=1e-10)


PASSES = {
    ("ddim", 5): 5,
    ("ddpm", 5): 5,
    ("plms", 2): 8,
    ("plms", 5): 4 * 3 + 2,
    ("dpm_solver", 5): 5,
}


@pytest.mark.parametrize(("sampler", "steps"), PASSES)
def test_passes_of_the_network(sampler, steps, model):
    sample(model, sampler, steps)
    assert len(model.calls) == PASSES[sampler, steps] == PRIOR_SAMPLERS.get(sampler).settings().evaluations(steps)


@pytest.mark.parametrize(
    ("order", "method", "passes"), [(3, "multistep", 6), (2, "singlestep", 10), (3, "singlestep", 15)]
)
def test_passes_of_dpm_solver(order, method, passes, model):
    settings = DPMSolverSettings(order=order, method=method)
    sample(model, "dpm_solver", 5, settings=settings)
    assert len(model.calls) == passes == settings.evaluations(5)


def test_integrals_and_polynomials_are_what_they_say():
    u = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    for h in (0.7, -1.3):
        for k, found in enumerate(integrals(h, 3)):
            assert found == pytest.approx(torch.trapezoid(h * ((u - 1) * h).exp() * u**k, u).item(), rel=1e-8)
    points = [(0.0, torch.tensor(2.0)), (-0.4, torch.tensor(5.0)), (0.9, torch.tensor(-1.0))]
    for count in (1, 2, 3):
        coefficients = polynomial(points[:count])
        for place, value in points[:count]:
            assert sum(c * place**k for k, c in enumerate(coefficients)) == pytest.approx(value.item(), abs=1e-5)


# Ancestral sampling.


def test_ancestral_sampling_has_the_priors_mean_and_covariance(model):
    count = 2000
    z = sample(model, "ddpm", 1000, count)
    deviations = ((z - model.mean) / model.variance.sqrt()).flatten(1)
    assert (deviations.mean(0) * count**0.5).abs().max() < 4
    covariance = deviations.T.cov()
    sampling_error = torch.where(torch.eye(len(covariance)) > 0, 2.0, 1.0).sqrt() / count**0.5
    assert ((covariance - torch.eye(len(covariance))) / sampling_error).abs().max() < 4.5


def test_ancestral_sampling_is_ddim_with_eta_1_but_for_its_last_step(model):
    """Song et al., 2021, section 4.1: at eta = 1 the process is that of Ho et al."""
    ddim = PRIOR_SAMPLERS.get("ddim").settings(eta=1)
    calls = {}
    for name, settings in (("ddpm", None), ("ddim", ddim)):
        model.calls.clear()
        calls[name] = (sample(model, name, 20, settings=settings), torch.stack(model.calls).double())
    assert torch.equal(calls["ddpm"][1], calls["ddim"][1])
    # The last step leads to timestep 0 in one and past it in the other.
    assert (calls["ddpm"][0] - calls["ddim"][0]).abs().max() < 0.2
    assert not torch.equal(calls["ddpm"][0], calls["ddim"][0])


# All of them.


@pytest.mark.parametrize("sampler", PRIOR_SAMPLERS.names())
def test_guidance_is_its_formula(sampler, model):
    condition = torch.full((4, *SHAPE), 0.3, dtype=torch.float64)
    nothing = torch.full((4, *SHAPE), -0.1, dtype=torch.float64)
    guided = sample(
        model,
        sampler,
        5,
        conditioning=condition,
        unconditional_conditioning=nothing,
        unconditional_guidance_scale=2.5,
    )
    # The model adds its condition to the estimate, so guidance amounts to another condition.
    assert torch.allclose(guided, sample(model, sampler, 5, conditioning=nothing + 2.5 * (condition - nothing)))
    assert not torch.allclose(guided, sample(model, sampler, 5, conditioning=condition))


@pytest.mark.parametrize("sampler", PRIOR_SAMPLERS.names())
def test_a_sample_with_a_generator_of_its_own_does_not_depend_on_its_neighbours(sampler, model):
    def of(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sample_prior(model, sampler, 6, (len(seeds), *SHAPE), generators, dtype=torch.float64)

    assert torch.allclose(of(1, 2, 3)[2], of(3)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("sampler", PRIOR_SAMPLERS.names())
@pytest.mark.parametrize("steps", [0, 1001, 2.5])
def test_a_number_of_steps_that_cannot_be_is_refused(sampler, steps, model):
    with pytest.raises(UserError, match="steps"):
        sample(model, sampler, steps)


def test_an_unknown_sampler_offers_the_nearest(model):
    with pytest.raises(UserError, match="did you mean 'plms'.*ddim, ddpm, dpm_solver, plms"):
        sample(model, "pmls", 5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"order": 4}, "a whole number from 1 to 3"),
        ({"order": True}, "a whole number from 1 to 3"),
        ({"spacing": "even"}, "log_snr"),
        ({"ordr": 1}, "order"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        read(DPMSolverSettings, settings, "dpm_solver")


def test_levels_are_those_of_the_timesteps_and_monotone_between(model):
    table = LevelTable.of(model.alphas_cumprod)
    for timestep in (0, 1, 500, 999):
        assert table.at(timestep).alpha ** 2 == pytest.approx(model.alphas_cumprod[timestep].item(), rel=1e-6)
        assert table.at_log_snr(table.at(timestep + 0.0).log_snr).timestep == pytest.approx(timestep, abs=1e-6)
    for spacing in ("log_snr", "time", "quadratic"):
        levels = table.spaced(7, spacing)
        assert (levels[0].timestep, levels[-1].timestep) == pytest.approx((999, 0), abs=1e-6)
        assert all(now.log_snr < then.log_snr for now, then in pairwise(levels))
        assert all(level.alpha**2 + level.sigma**2 == pytest.approx(1) for level in levels)
