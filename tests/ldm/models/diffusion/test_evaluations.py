"""The passes that a run reports, against the cost told before it and against what the networks' own hooks saw."""

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.evaluations import EvaluationCounter, Evaluations
from ldm.models.diffusion.prior import NO_STEPS, LatentPrior
from ldm.util import instantiate_from_config
from ldm_inverse.solvers.resample_settings import ResampleSettings
from ldm_inverse.solvers.samplers import get_sampler
from tests.ldm.gaussian import GaussianLatents, soft_step_of
from tests.tiny import CONFIG
from util.settings import read

STEPS = 12
# Nothing reaches such an eps: every optimisation runs to its limit.
NEVER = {"eps": 1e-12, "max_iters": 3, "window": None}
LATE = {"interval": 3, "pixel": NEVER, "latent": NEVER}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return instantiate_from_config(CONFIG["model"]).eval().requires_grad_(False)


def run(model, settings, sampler="resample", batch=1, **kwargs):
    """The events of a run."""
    events = []
    y = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kwargs = {"generator": torch.Generator().manual_seed(1), "initial": torch.zeros_like(y), **kwargs}
    DDIMSampler(model).posterior_sampler(
        *(y, soft_step_of(model, torch.tanh), torch.tanh, STEPS, batch, (3, 16, 16), sampler),
        **{"verbose": False, "settings": settings, "callback": events.append, **kwargs},
    )
    return events


def total(events, sample=0):
    """All passes of a sample."""
    own = [event for event in events if event.sample == sample]
    return Evaluations(*(sum(getattr(event.evaluations, kind) for event in own) for kind in Evaluations._fields))


CHANGES = [
    *(("resample", LATE | change) for change in ({}, {"soft_step": False}, {"final": False}, {"travel_length": 2})),
    ("resample", LATE | {"start": "1/2"}),
    ("dps", {}),
    ("dps", {"through_unet": True, "weight": "constant"}),
    ("psld", {}),
    ("daps", {"ode_steps": 3, "iterations": 4, "decoder_error": 0.1}),
    ("sitcom", {"input": NEVER}),
]


@pytest.mark.parametrize(("sampler", "config"), CHANGES, ids=str)
def test_the_most_passes_are_those_of_a_run_that_goes_to_its_limits(model, sampler, config):
    chosen = get_sampler(sampler)
    settings = read(chosen.settings, config, sampler)
    spent, cost = total(run(model, settings, sampler)), settings.cost(STEPS)
    decoder = (cost.decoder + cost.decoder_forward, cost.decoder)
    assert spent == Evaluations(cost.unet, *decoder, cost.unet_backward, cost.encoder, cost.encoder_backward)
    assert spent.unet > 0


def test_they_are_what_the_networks_saw(model):
    unet, decoder = model.model.diffusion_model, model.first_stage_model.decoder
    seen = {"unet": 0, "encoder": 0, "forward": 0, "backward": 0}

    def saw(kind):
        seen[kind] += 1

    def decoded(_module, _inputs, out):
        saw("forward")
        if out.requires_grad:
            out.register_hook(lambda _: saw("backward"))

    hooks = [unet.register_forward_hook(lambda *_: saw("unet")), decoder.register_forward_hook(decoded)]
    hooks.append(model.first_stage_model.encoder.register_forward_hook(lambda *_: saw("encoder")))
    settings = read(ResampleSettings, {**LATE, "pixel": {**NEVER, "eps": 10}})  # stops at once
    spent = total(run(model, settings))
    for hook in hooks:
        hook.remove()
    assert spent == (seen["unet"], seen["forward"], seen["backward"], 0, seen["encoder"], 0)
    assert seen["encoder"] > 0


def test_each_event_has_its_own(model):
    events = run(model, read(ResampleSettings, LATE))
    expected = {"soft": (1, 1, 1), "pixel": (5, 1, 0), "latent": (3, 3, 3), "final": (0, 3, 3)}
    for event in events:
        assert event.evaluations[:3] == expected[event.stage]
    assert {event.stage for event in events} == set(expected)


def test_what_a_callback_decodes_and_what_ran_before_do_not_count(model):
    settings = read(ResampleSettings, LATE)
    quiet = total(run(model, settings))
    looked = []
    watched = run(model, settings, img_callback=lambda z, _: looked.append(model.decode_first_stage(z)))
    assert total(watched) == quiet
    assert len(looked) == STEPS


def test_guidance_is_one_pass_of_a_doubled_batch():
    model = GaussianLatents(torch.zeros(3, 8, 8), torch.ones(3, 8, 8))
    model.evaluations = counter = EvaluationCounter()
    apply_model = model.apply_model

    def counted(z, t, cond=None):
        estimate = apply_model(z, t, cond).detach()
        counter.count_denoising(estimate)
        return estimate

    model.apply_model = counted
    condition = torch.zeros(2, 3, 8, 8)
    LatentPrior(model, NO_STEPS, condition, condition + 1, guidance_scale=2.0).predict_noise(condition, 5)
    assert [counter.of(image).unet for image in range(4)] == [1, 1, 0, 0]


def test_inside_counting_for_passes_are_for_the_images_named():
    counter, two = EvaluationCounter(), torch.zeros(2, 1).requires_grad_()
    with counter.counting_for([3, 5]):
        counter.count_denoising(two.detach())
        image = two * 2
        counter.count_decoding(image)
    image.sum().backward()  # outside, and still for those that the forward pass was for
    assert counter.of(3) == counter.of(5) == (1, 1, 1, 0, 0, 0)
    assert counter.of(0) == Evaluations()
    assert counter.images() == {3, 5}
