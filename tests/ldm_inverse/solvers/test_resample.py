"""Hard consistency on a Gaussian prior with an identity first stage, the reference's quirks, and what a run reports."""

import math

import pytest
import torch

from ldm.models.diffusion.prior import DDIMSchedule, ddim_step
from ldm_inverse.solvers import resample
from ldm_inverse.solvers.observer import StageEnded
from ldm_inverse.solvers.problem import InverseProblem, mean_squared_residual
from ldm_inverse.solvers.resample_settings import LatentSettings, PixelSettings, ResampleSettings, StageShares
from ldm_inverse.solvers.sampler_run import SamplerRun
from tests.ldm.gaussian import soft_step_of
from tests.ldm_inverse.solvers.half_seen import QUICK, SHAPE, left_half, prior_of, randn, restore
from util.errors import UserError

# Hard consistency.


def deviation_of_the_unseen(schedule, settings, variance):
    """Standard deviation at the end of a run of a latent that nothing measures: all that happens to it is linear."""

    def clean(k):  # Tweedie's estimate, as a factor on the latent's deviation from its mean
        return schedule.alphas[k] ** 0.5 * variance / (schedule.alphas[k] * variance + 1 - schedule.alphas[k])

    def step(k):
        a, a_prev = schedule.alphas[k], schedule.alphas_prev[k]
        return a_prev**0.5 * clean(k) + ((1 - a_prev) * (1 - a)) ** 0.5 / (a * variance + 1 - a)

    spread = 1.0
    for k in reversed(range(len(schedule))):
        spread *= step(k) ** 2
        if settings.stage_at(k, len(schedule)):
            ahead = math.prod(step(j) for j in range(k - 4, k)) * clean(k - 5)
            a_prev, sigma = schedule.alphas_prev[k], resample.resample_sigma(schedule, k, settings)
            total = sigma + 1 - a_prev
            spread *= ((sigma * a_prev**0.5 * ahead + 1 - a_prev) / total) ** 2
            spread += sigma * (1 - a_prev) / total
    return spread**0.5


@pytest.mark.parametrize(
    "stages", [StageShares(plain=0, latent=0), StageShares(plain=0, latent=1)], ids=["pixel", "latent"]
)
def test_the_result_explains_the_measurement_and_the_unseen_part_stays_with_the_prior(model, stages):
    settings = ResampleSettings(
        interval=5,
        stages=stages,
        soft_step=False,
        tweedie="exact",
        travel_index="exact",
        pixel=PixelSettings(weight_decay=0),
        latent=LatentSettings(lr=1e-2, max_iters=2000, weight_decay=0),
    )
    truth = model.mean + 0.5 * randn(8, *SHAPE, seed=1)
    measurement = left_half(truth)
    z = restore(model, measurement, S=100, batch_size=8, settings=settings, soft=False)
    assert (mean_squared_residual(measurement, left_half(z)) < 1e-6).all()
    # 768 unseen numbers, independent under the prior: mean and deviation within 4 standard errors.
    unseen = (z - model.mean)[..., 4:]
    expected = deviation_of_the_unseen(DDIMSchedule.of(model.alphas_cumprod, 100), settings, 0.25)
    assert 0.35 < expected < 0.5  # the prior's 0.5, a little less: the clean latent is a mean, not a draw
    assert unseen.mean().abs() < 4 * expected / 768**0.5
    assert unseen.std().item() == pytest.approx(expected, rel=4 / (2 * 768) ** 0.5)


@pytest.mark.parametrize(
    "stages", [StageShares(plain=0, latent=0), StageShares(plain=0, latent=1)], ids=["pixel", "latent"]
)
def test_a_single_event_moves_what_the_operator_sees_and_nothing_else(model, stages):
    z, measurement, prior, index = randn(1, *SHAPE), randn(1, 3, 8, 4, seed=1), prior_of(model), 20
    settings = ResampleSettings(
        stages=stages,
        pixel=PixelSettings(weight_decay=0),
        latent=LatentSettings(lr=1e-2, max_iters=2000, weight_decay=0),
    )
    problem, told = InverseProblem(measurement, left_half), []
    run = SamplerRun(prior.schedule, problem, 1, told.append)
    found, _ = resample.hard_consistency(prior, problem, z, index, settings, run)
    (event,) = (event for event in told if isinstance(event, StageEnded))
    assert (event.stop, event.step) == ("threshold", 19)
    # The same by hand: what was fitted has the measurement where it is seen, and what was seen ahead where it is not.
    prior = prior_of(model)
    clean = resample.time_travel(prior, z, index, settings).pseudo_x0.clone()
    clean[..., :4] = measurement
    expected = resample.resample_at(prior, clean, z, index, settings)
    assert torch.allclose(found[..., :4], expected[..., :4], atol=5e-3)
    assert torch.equal(found[..., 4:], expected[..., 4:])


def test_an_anchored_fit_is_the_posterior_mean_of_two_gaussians(model):
    """Seen entries lie between y and z0, weighted by the variances; unseen ones stay."""
    z0, measurement = randn(1, *SHAPE), randn(1, 3, 8, 4, seed=1)
    problem = InverseProblem(measurement, left_half, noise_sigma=0.3)
    settings = LatentSettings(
        lr=1e-2, max_iters=3000, weight_decay=0, window=None, eps=1e-6, anchor=0.5, decoder_error=0.4
    )
    abar = 0.36
    residual_variance, prior_variance = 0.3**2 + 0.4**2, 0.5**2 * (1 - abar)
    got = resample.fit_latent(model, problem, z0, settings, abar).x
    want = (prior_variance * measurement + residual_variance * left_half(z0)) / (prior_variance + residual_variance)
    assert torch.allclose(left_half(got), want, atol=1e-4)
    assert torch.equal(got[..., 4:], z0[..., 4:])


def test_a_run_can_start_from_a_diffused_guess(model):
    """All that is left of a run of 10 steps at a start of 0.3 begins at index 2 from the guess and the noise."""
    guess, noise, measurement = randn(1, *SHAPE, seed=2), randn(1, *SHAPE, seed=3), left_half(randn(1, *SHAPE, seed=1))
    seen = []
    settings = ResampleSettings(
        start=0.3, stages=StageShares(plain=1, latent=0), soft_step=False, final=False, tweedie="exact"
    )
    z = restore(
        model, measurement, S=10, settings=settings, soft=False, x_T=noise, initial=guess,
        img_callback=lambda _, step: seen.append(step),
    )  # fmt: skip
    assert seen == [7, 8, 9]
    prior = prior_of(model, 10)
    a = prior.schedule.alphas[2]
    want = a**0.5 * guess + (1 - a) ** 0.5 * noise
    for index in (2, 1, 0):
        want = prior.ddim_step(want, index).x_prev
    assert torch.allclose(z, want)
    assert settings.cost(10).unet == 3


def test_a_late_start_without_a_guess_is_refused(model):
    with pytest.raises(UserError, match="start"):
        restore(model, left_half(randn(1, *SHAPE)), settings=ResampleSettings(start=0.5))


def test_resampling_draws_from_the_product_of_two_gaussians():
    clean, z = torch.full((20000,), 0.5, dtype=torch.float64), torch.full((20000,), -1.0, dtype=torch.float64)
    a_prev, sigma = 0.6, 1.7
    drawn = resample.resample(clean, z, a_prev, sigma, randn(20000))
    precision = 1 / sigma + 1 / (1 - a_prev)
    mean = (z[0] / sigma + a_prev**0.5 * clean[0] / (1 - a_prev)) / precision
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=5 * (1 / precision / 20000) ** 0.5)
    assert drawn.var().item() == pytest.approx(1 / precision, rel=0.05)


# Dps: steps 1 to 3 only.


def test_dps_is_resample_without_hard_consistency(model):
    measurement = left_half(randn(1, *SHAPE, seed=1))
    none = ResampleSettings(stages=StageShares(plain=1, latent=0), final=False)
    events = []
    alone = restore(model, measurement, cond_method="dps", callback=events.append)
    assert torch.equal(alone, restore(model, measurement, settings=none))
    assert {event.stage for event in events} == {"soft"}


def test_the_soft_step_is_its_equation(model):
    problem = InverseProblem(left_half(randn(2, *SHAPE, seed=1)), left_half, soft_step_of(model, left_half))
    prior, index, z = prior_of(model), 17, randn(2, *SHAPE, seed=2)
    a = prior.schedule.alphas[index]
    z_next, x0, norm = resample.soft_step(prior, problem, z, index, 0.7 * a)
    e = model.apply_model(z, torch.full((2,), prior.schedule.timesteps[index]))
    assert torch.allclose(x0, (z - (1 - a) ** 0.5 * e) / a**0.5)
    residual = problem.measurement - left_half((z - (1 - a) * e) / a**0.5)
    for sample in range(2):
        assert norm[sample].item() == pytest.approx(residual[sample].norm().item())
        # The norm's gradient: minus the unit residual through A^T, over sqrt(a); the noise estimate is constant.
        gradient = torch.nn.functional.pad(-residual[sample] / residual[sample].norm(), (0, 4)) / a**0.5
        plain = prior.schedule.alphas_prev[index] ** 0.5 * x0[sample]
        plain = plain + (1 - prior.schedule.alphas_prev[index]) ** 0.5 * e[sample]
        assert torch.allclose(z_next[sample], plain - 0.7 * a * gradient)
    assert not z_next.requires_grad
    assert not x0.requires_grad


def test_a_run_without_soft_step_needs_no_condition_function(model):
    measurement = left_half(randn(1, *SHAPE, seed=1))
    assert restore(model, measurement, settings=ResampleSettings(soft_step=False, **QUICK), soft=False).isfinite().all()


# The reference's quirks, each switchable.


def test_tweedie():
    schedule = DDIMSchedule((1, 501), (0.9, 0.3), (0.95, 0.9), (0.0, 0.0))
    z, e = randn(1, *SHAPE), randn(1, *SHAPE, seed=1)
    quirk, exact = (ddim_step(z, e, schedule, 1, z, tweedie) for tweedie in ("reference", "exact"))
    assert torch.allclose(quirk.pseudo_x0, (z - 0.7 * e) / 0.3**0.5)
    assert torch.allclose(exact.pseudo_x0, (z - 0.7**0.5 * e) / 0.3**0.5)
    assert torch.equal(quirk.x_prev, exact.x_prev)


def test_tweedie_reaches_soft_step_and_time_travel(model):
    prior, z = prior_of(model), randn(1, *SHAPE)
    seen = []

    def condition_fn(x_t, x_0_hat, **_):
        seen.append(x_0_hat.detach())
        return x_t, x_0_hat.norm()

    problem = InverseProblem(z, left_half, condition_fn)
    _, x0, _ = resample.soft_step(prior, problem, z, 20, 0.5, "exact")
    assert torch.equal(seen[0], x0)
    ahead = resample.time_travel(prior, z, 20, ResampleSettings(tweedie="exact"))
    assert torch.equal(ahead.pseudo_x0, ahead.pred_x0)


@pytest.mark.parametrize(("travel_index", "lag"), [("reference", 1), ("exact", 0)])
@pytest.mark.parametrize(("index", "length", "steps"), [(20, 5, 5), (20, 2, 2), (3, 5, 3), (1, 5, 1)])
def test_time_travel(model, travel_index, lag, index, length, steps):
    prior, z = prior_of(model), randn(1, *SHAPE)
    ahead = resample.time_travel(prior, z, index, ResampleSettings(travel_index=travel_index, travel_length=length))
    # The network is told the latent's own timestep, from the one that the step from `index` led to.
    told = [prior.schedule.timesteps[k] for k in range(index - 1, index - 1 - steps, -1)]
    assert [t.item() for t in model.calls] == told
    for k in range(index - 1, index - 1 - steps, -1):
        e = model.apply_model(z, torch.tensor([prior.schedule.timesteps[k]]))
        step = ddim_step(z, e, prior.schedule, k + lag, torch.zeros_like(z))
        z = step.x_prev
    assert torch.equal(ahead.pseudo_x0, step.pseudo_x0)


def test_resample_variance():
    schedule = DDIMSchedule((1, 501), (0.9, 0.3), (0.95, 0.9), (0.0, 0.0))
    quirk = resample.resample_sigma(schedule, 1, ResampleSettings(gamma=2))
    assert quirk == pytest.approx(2 * 0.1 / 0.7 * (1 - 0.3 / 0.9))
    paper = resample.resample_sigma(schedule, 1, ResampleSettings(gamma=2, resample_variance="paper"))
    assert paper == pytest.approx(2 * 0.1 / 0.3 * (1 - 0.3 / 0.9))


def test_the_latent_stage_decodes_through_the_codebook_unless_told_not_to(model, monkeypatch):
    quantised = []
    monkeypatch.setattr(model, "quantize", lambda z: quantised.append(1) or z)
    problem, z = InverseProblem(left_half(randn(1, *SHAPE)), left_half), randn(1, *SHAPE, seed=1)
    resample.fit_latent(model, problem, z, LatentSettings(max_iters=3, quantise=False))
    assert quantised == []
    resample.fit_latent(model, problem, z, LatentSettings(max_iters=3))
    assert len(quantised) == 3


# The noise floor.


def test_eps_noise_stops_at_the_noise_floor(model):
    truth, sigma = randn(1, *SHAPE), 0.1
    problem = InverseProblem(left_half(truth) + sigma * randn(1, 3, 8, 4, seed=1), left_half, noise_sigma=sigma)
    found = resample.fit_pixel(problem, torch.zeros(1, *SHAPE, dtype=torch.float64), PixelSettings(eps="noise"))
    assert found.stops == ["threshold"]
    assert found.losses[0][-1] < sigma**2 <= found.losses[0][-2]


def test_eps_noise_of_an_unknown_level_is_refused_before_any_work(model):
    with pytest.raises(UserError, match="not known"):
        restore(model, left_half(randn(1, *SHAPE)), settings=ResampleSettings(latent=LatentSettings(eps="noise")))
    assert model.calls == []


def test_the_level_reaches_every_stage(model):
    settings = ResampleSettings(
        interval=2, soft_step=False, pixel=PixelSettings(eps="noise"), latent=LatentSettings(lr=0.05, eps="noise")
    )
    events = []
    measurement = left_half(model.mean[None] + 0.5 * randn(1, *SHAPE, seed=1))
    restore(model, measurement, S=12, settings=settings, noise_sigma=0.2, soft=False, callback=events.append)
    fitted = [event for event in events if event.stage != "ddim"]
    assert {event.stage for event in fitted} == {"pixel", "latent", "final"}
    assert all(event.stop == "threshold" and event.last_loss < 0.04 for event in fitted)
