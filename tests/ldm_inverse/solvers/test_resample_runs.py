"""Whole runs of the sampler: their steps, events and batches, their draws, gradients and dtype."""

import math

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.prior import DDIMSchedule, LatentPrior
from ldm_inverse.solvers import resample
from ldm_inverse.solvers.resample_settings import LatentSettings, PixelSettings, ResampleSettings
from tests.ldm.gaussian import soft_step_of
from tests.ldm_inverse.solvers.half_seen import QUICK, SHAPE, left_half, randn, restore, seeded
from util.errors import UserError
from util.settings import read

# The run.


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11, 30, 300, 999, 1000])
def test_any_number_of_steps_runs_as_many(model, steps):
    events, images = [], []
    settings = ResampleSettings(soft_step=False, interval=1 if steps < 12 else 100, **QUICK)
    z = restore(
        model,
        left_half(randn(1, *SHAPE, seed=1)),
        S=steps,
        settings=settings,
        soft=False,
        callback=events.append,
        img_callback=lambda x0, i: images.append(i),
    )
    plain = [event for event in events if event.stage == "ddim"]
    assert [event.step for event in plain] == images == list(range(steps))
    assert [event.timestep for event in plain] == list(reversed(DDIMSchedule.of(model.alphas_cumprod, steps).timesteps))
    assert all(0 <= t.item() < 1000 for t in model.calls)
    assert z.isfinite().all()


def test_the_default_run_has_the_references_cost(model):
    events = []
    restore(
        model, left_half(randn(1, *SHAPE, seed=1)), S=500, settings=ResampleSettings(**QUICK), callback=events.append
    )
    assert len(model.calls) == 665
    stages = [event.stage for event in events]
    assert {name: stages.count(name) for name in set(stages)} == {"soft": 500, "pixel": 17, "latent": 16, "final": 1}


def test_events_say_what_was_done(model):
    events = []
    restore(
        model, left_half(randn(1, *SHAPE, seed=1)), S=40, settings=ResampleSettings(**QUICK), callback=events.append
    )
    pixel, latent, final = (event for event in events if event.stage != "soft")
    assert (pixel.stage, pixel.step, pixel.timestep) == ("pixel", 19, 501)
    assert (latent.stage, latent.step, latent.timestep) == ("latent", 29, 251)
    assert (final.stage, final.step, final.timestep) == ("final", 40, 0)
    for event in (pixel, latent, final):
        assert (event.iterations, event.stop) == (5, "limit")
        assert event.first_loss > event.last_loss > 0
        assert event.seconds > 0


def test_events_keep_the_losses_of_every_iteration_with_target_and_noise_floor(model):
    events = []
    measurement = left_half(randn(1, *SHAPE, seed=1))
    restore(model, measurement, S=40, settings=ResampleSettings(**QUICK), noise_sigma=0.2, callback=events.append)
    assert all(event.noise_floor == pytest.approx(0.04) for event in events)
    for event in events:
        if event.stage == "soft":  # the norm, as the mean square over the measurement's entries
            assert event.losses == pytest.approx([event.first_loss**2 / measurement.numel()])
        else:
            assert len(event.losses) == event.iterations
            assert (event.losses[0], event.losses[-1]) == (event.first_loss, event.last_loss)
            assert event.target == pytest.approx(1e-6)
    restore(model, measurement, S=4, settings=ResampleSettings(**QUICK), callback=events.append)
    assert events[-1].noise_floor is None


def test_the_bar_follows_an_optimisation_while_it_goes_on(model, monkeypatch, capsys):
    monkeypatch.setattr("ldm_inverse.solvers.progress_bar.BAR_SECONDS", 0)
    settings = ResampleSettings(interval=4, soft_step=False, pixel=PixelSettings(max_iters=5), final=False)
    restore(model, left_half(randn(1, *SHAPE, seed=1)), S=12, settings=settings, soft=False, verbose=True)
    shown = capsys.readouterr().err
    for iteration in range(5):
        assert f"pixel {iteration}/5, loss " in shown
    assert ", target 1.0e-06, " in shown
    assert " GB" in shown


def test_a_final_stage_can_be_left_out_or_be_its_own(model):
    measurement = left_half(randn(1, *SHAPE, seed=1))
    for final, iterations in ((False, []), (LatentSettings(max_iters=9), [9])):
        events = []
        restore(model, measurement, settings=ResampleSettings(final=final, **QUICK), callback=events.append)
        assert [event.iterations for event in events if event.stage == "final"] == iterations


def test_the_picture_of_an_event_is_that_of_its_last_travel_step(model):
    pictures = {}
    settings = ResampleSettings(soft_step=False, final=False, **QUICK)
    restore(
        model,
        left_half(randn(1, *SHAPE, seed=1)),
        S=40,
        settings=settings,
        soft=False,
        img_callback=lambda x0, i: pictures.__setitem__(i, x0),
    )
    # The same run, up to the first event by hand.
    prior = LatentPrior(model, DDIMSchedule.of(model.alphas_cumprod, 40), generator=seeded())
    z = prior.noise_like(torch.empty((1, *SHAPE), dtype=torch.float64))
    for index in range(39, 19, -1):
        z, x0, _ = prior.ddim_step(z, index)
        if index > 20:
            assert torch.equal(pictures[39 - index], x0)
    assert torch.equal(pictures[19], resample.time_travel(prior, z, 20, settings).pred_x0)


@pytest.mark.parametrize(
    ("draws", "drawn"), [("0", []), ("1/2", [9, 8, 7, 6, 5]), ("0.85", range(9, 1, -1)), ("1", range(9, 0, -1))]
)
def test_fits_over_images_are_draws_at_the_highest_noise_levels(model, monkeypatch, draws, drawn):
    exact, with_noise, fits, bounds = resample.proximal, [], [], []

    def proximal(problem, image, settings, noise=None, most=math.inf):
        fits.append(9 - len(fits))
        if noise is not None:
            with_noise.append(fits[-1])
            bounds.append(most)
        return exact(problem, image, settings, noise, most)

    monkeypatch.setattr(resample, "proximal", proximal)
    settings = read(
        ResampleSettings,
        {
            "interval": 1,
            "stages": {"plain": 0, "latent": 0},
            "soft_step": False,
            "final": False,
            "pixel": {"method": "exact", "draws": draws},
        },
    )
    restore(model, left_half(randn(1, *SHAPE, seed=1)), S=10, settings=settings, soft=False, noise_sigma=0.1)
    assert fits == list(range(9, 0, -1))
    assert with_noise == list(drawn)
    # A draw adds no more noise than the UNet takes away at the level that it goes back to.
    schedule = DDIMSchedule.of(model.alphas_cumprod, 10)
    levels = [(1 - schedule.alphas_prev[index]) ** 0.5 for index in drawn]
    assert bounds == [max(0.3 * level, 0.05) for level in levels]


def test_unknown_samplers_list_the_known(model):
    with pytest.raises(UserError, match="did you mean 'resample'.*psld, resample"):
        restore(model, left_half(randn(1, *SHAPE)), cond_method="resampel")


def test_a_measurement_of_another_batch_is_refused(model):
    with pytest.raises(UserError, match="3 measurements for a batch of 2"):
        restore(model, left_half(randn(3, *SHAPE)), batch_size=2)


# Batches: each sample has its own norm, loss and stopping.


def test_each_sample_of_a_batch_is_restored_as_it_would_be_alone(model, monkeypatch):
    x_T, measurement = randn(2, *SHAPE, seed=4), left_half(torch.stack([3 * randn(*SHAPE, seed=1), model.mean]))
    settings = ResampleSettings(
        interval=4, pixel=PixelSettings(eps=0.03), latent=LatentSettings(lr=0.05, eps=0.03, window=20)
    )

    def run(samples):
        stream, events = seeded(), []

        def noise(shape, *_):  # each sample sees the noise that it sees in the batch of both
            return torch.randn((2, *SHAPE), dtype=torch.float64, generator=stream)[samples]

        monkeypatch.setattr("ldm.models.diffusion.prior.standard_normal", noise)
        start = x_T[samples]
        z = restore(
            model,
            measurement[samples],
            batch_size=len(start),
            x_T=start,
            settings=settings,
            callback=events.append,
        )
        return z, events

    both, events = run(slice(0, 2))
    for sample in (0, 1):
        alone, own = run(slice(sample, sample + 1))
        assert torch.allclose(both[sample], alone[0], rtol=0, atol=1e-12)
        theirs = [event for event in events if event.sample == sample]
        assert [(e.stage, e.iterations, e.stop) for e in theirs] == [(e.stage, e.iterations, e.stop) for e in own]
    lengths = [[e.iterations for e in events if e.sample == sample and e.stage != "soft"] for sample in (0, 1)]
    assert lengths[0] != lengths[1]


def test_one_measurement_serves_several_samples_and_events_name_them(model):
    events = []
    measurement = left_half(randn(1, *SHAPE, seed=1))
    z = restore(model, measurement, batch_size=3, settings=ResampleSettings(**QUICK), callback=events.append)
    assert z.shape == (3, *SHAPE)
    assert not torch.allclose(z[0], z[1])
    assert [event.sample for event in events if event.stage == "final"] == [0, 1, 2]


# Gradients, noise, dtype.


def test_no_parameter_of_network_or_operator_receives_a_gradient(model):
    kernel = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    measurement = left_half(randn(1, *SHAPE, seed=1))
    z = restore(model, measurement, lambda x: kernel * left_half(x), settings=ResampleSettings(interval=2, **QUICK))
    assert not z.requires_grad
    assert [p.grad for p in (*model.parameters(), kernel)] == [None, None, None]


def test_no_graph_is_kept_between_steps(model):
    kept = []
    settings = ResampleSettings(interval=2, **QUICK)
    sampler = DDIMSampler(model)
    measurement = left_half(randn(1, *SHAPE, seed=1))

    def condition_fn(x_t, x_prev, **kwargs):
        kept.append(x_prev)
        assert x_prev.is_leaf  # nothing behind it but the step before
        return soft_step_of(model, left_half)(x_t=x_t, x_prev=x_prev, **kwargs)

    _, intermediates = sampler.posterior_sampler(
        measurement, condition_fn, left_half, 20, 1, SHAPE, settings=settings, verbose=False, log_every_t=1
    )
    assert len(kept) == 20
    assert not any(z.requires_grad for part in intermediates.values() for z in part)


def test_draws_are_z_then_one_a_step_travel_included_then_one_a_resampling(model):
    used, counted = seeded(3), seeded(3)
    settings = ResampleSettings(interval=5, **QUICK)
    restore(model, left_half(randn(1, *SHAPE, seed=1)), S=20, settings=settings, generator=used)
    events, travel = 2, 10  # indices 10 and 5; five travel steps each
    for _ in range(1 + 20 + travel + events):
        torch.randn((1, *SHAPE), dtype=torch.float64, generator=counted)
    assert torch.equal(used.get_state(), counted.get_state())


def test_noise_is_drawn_in_contiguous_layout_whatever_the_networks(model):
    measurement = left_half(randn(2, *SHAPE, seed=1))
    settings = ResampleSettings(interval=5, **QUICK)
    plain = restore(model, measurement, batch_size=2, settings=settings, eta=1.0)
    model.memory_format = torch.channels_last
    assert torch.allclose(restore(model, measurement, batch_size=2, settings=settings, eta=1.0), plain, atol=1e-9)


def test_global_random_state_is_left_alone(model):
    before = torch.get_rng_state()
    restore(model, left_half(randn(1, *SHAPE, seed=1)), settings=ResampleSettings(interval=5, **QUICK))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_computes_in_the_measurements_dtype(model):
    model.float()
    z = restore(model, left_half(randn(1, *SHAPE)).float(), settings=ResampleSettings(interval=5, **QUICK))
    assert z.dtype == torch.float32


def test_it_runs_where_gradients_are_off(model):
    measurement = left_half(randn(1, *SHAPE, seed=1))
    with torch.no_grad():
        quiet = restore(model, measurement, settings=ResampleSettings(**QUICK))
    assert torch.equal(quiet, restore(model, measurement, settings=ResampleSettings(**QUICK)))
