"""Plain DDIM sampling: against a Gaussian prior in closed form, the guidance formula, and the noise it draws."""

from itertools import pairwise

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from tests.ldm.gaussian import random_gaussian
from util.errors import UserError

SHAPE = (3, 4, 4)


@pytest.fixture
def model():
    return random_gaussian(SHAPE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(model, S, batch_size=2, generator=None, **kwargs):
    generator = generator or seeded()
    return DDIMSampler(model).sample(S, batch_size, SHAPE, verbose=False, generator=generator, **kwargs)[0]


# The exact flow of a Gaussian scales each latent's deviation from the mean by the ratio of marginal deviations.


def flow_error(model, steps):
    sampler = DDIMSampler(model)
    x_T = torch.randn((8, *SHAPE), dtype=torch.float64, generator=seeded())
    z, _ = sampler.sample(steps, 8, SHAPE, x_T=x_T, verbose=False, generator=seeded())
    start, end = sampler.schedule.alphas[-1], sampler.schedule.alphas_prev[0]
    ratio = (model.marginal(end) / model.marginal(start)).sqrt()
    exact = end**0.5 * model.mean + ratio * (x_T - start**0.5 * model.mean)
    return (z - exact).abs().max().item()


def test_deterministic_ddim_follows_the_exact_flow_with_first_order(model):
    errors = [flow_error(model, steps) for steps in (125, 250, 500)]
    orders = [torch.tensor(a / b).log2().item() for a, b in pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.2)
    assert errors[-1] < 0.02


def test_ancestral_sampling_has_the_priors_mean_and_variance(model):
    count = 1000
    z = sample(model, 1000, count, eta=1.0)
    deviations = (z - model.mean) / model.variance.sqrt()
    assert (deviations.mean(0) * count**0.5).abs().max() < 4.5
    # Sampling error of a single latent's variance, and of their mean with the error of 1000 steps.
    assert (deviations.var(0) - 1).abs().max() < 5 * (2 / count) ** 0.5
    assert (deviations.var(0) - 1).mean().abs() < 0.02


# Guidance.


def test_guidance_is_its_formula(model):
    condition = torch.full((2, *SHAPE), 0.3, dtype=torch.float64)
    nothing = torch.full((2, *SHAPE), -0.1, dtype=torch.float64)
    guided = sample(
        model, 3, conditioning=condition, unconditional_conditioning=nothing, unconditional_guidance_scale=2.5
    )
    # The model adds its condition to the estimate, so guidance amounts to another condition.
    assert torch.allclose(guided, sample(model, 3, conditioning=nothing + 2.5 * (condition - nothing)), atol=1e-12)


def test_a_scale_of_one_does_not_evaluate_the_unconditional_branch(model):
    condition = torch.zeros((2, *SHAPE), dtype=torch.float64)
    sample(model, 3, conditioning=condition, unconditional_conditioning=condition)
    assert [len(t) for t in model.calls] == [2, 2, 2]


def test_conditioning_of_another_batch_size_is_refused(model):
    with pytest.raises(UserError, match="3 rows for a batch of 2"):
        sample(model, 3, conditioning=torch.zeros(3, *SHAPE))
    with pytest.raises(UserError, match="unconditional_conditioning has 1 rows for a batch of 2"):
        sample(model, 3, conditioning=torch.zeros(2, *SHAPE), unconditional_conditioning=torch.zeros(1, *SHAPE))


# The run.


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 9, 300, 400, 999, 1000])
def test_any_number_of_steps_runs_as_many(model, steps):
    z = sample(model, steps)
    timesteps = torch.stack(model.calls)[:, 0]
    assert len(timesteps) == steps
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000
    assert (timesteps.diff() < 0).all()
    assert z.isfinite().all()


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_its_range_is_refused(model, eta):
    with pytest.raises(UserError, match="from 0 to 1"):
        sample(model, 3, eta=eta)


def test_a_start_of_another_shape_is_refused(model):
    with pytest.raises(UserError, match="x_T has shape"):
        sample(model, 3, x_T=torch.zeros(1, *SHAPE))


def test_callbacks_and_intermediates(model):
    steps, images = [], []
    z, kept = DDIMSampler(model).sample(
        5,
        2,
        SHAPE,
        verbose=False,
        callback=steps.append,
        img_callback=lambda x0, i: images.append((i, x0.shape)),
        log_every_t=2,
    )
    assert steps == [0, 1, 2, 3, 4]
    assert images == [(i, (2, *SHAPE)) for i in range(5)]
    assert len(kept["x_inter"]) == len(kept["pred_x0"]) == 3
    assert torch.equal(kept["x_inter"][-1], z)


def test_the_bar_is_shown_when_asked_for(model, capfd):
    DDIMSampler(model).sample(5, 1, SHAPE, verbose=True)
    assert "5/5" in capfd.readouterr().err
    DDIMSampler(model).sample(5, 1, SHAPE, verbose=False)
    assert capfd.readouterr().err == ""


# Noise.


def test_the_stream_is_z_and_one_draw_a_step_whatever_eta(model):
    used = seeded(3)
    sample(model, 7, generator=used)
    counted = seeded(3)
    for _ in range(1 + 7):
        torch.randn((2, *SHAPE), dtype=torch.float64, generator=counted)
    assert torch.equal(used.get_state(), counted.get_state())


def test_a_generator_leaves_the_default_stream_alone_and_none_uses_it(model):
    before = torch.get_rng_state()
    first = sample(model, 3, generator=seeded(5), eta=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    try:
        torch.manual_seed(5)
        assert torch.equal(DDIMSampler(model).sample(3, 2, SHAPE, verbose=False, eta=1.0)[0], first)
    finally:
        torch.set_rng_state(before)


def test_noise_is_drawn_in_contiguous_layout_whatever_the_networks(model):
    plain = sample(model, 5, eta=1.0)
    model.memory_format = torch.channels_last
    assert not model.apply_model(plain, torch.tensor([1, 1])).is_contiguous()
    assert torch.equal(sample(model, 5, eta=1.0), plain)
