"""A batch of measurements restored at once: each image ends as it would alone, and leaves when it is done."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.util import instantiate_from_config
from ldm_inverse.solvers.observer import StageEnded
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.restore import restore as restore_images
from ldm_inverse.solvers.samplers import get_sampler
from ldm_inverse.solvers.solver import Solver
from ldm_inverse.task import Task
from tests.tiny import CONFIG
from util.errors import UserError
from util.settings import read

SHAPE = (1, 3, 32, 32)
# Optimisations that stop by a rule: what rounding does stays in the last digits.
SETTINGS = {
    "interval": 2,
    "travel_length": 2,
    "tweedie": "exact",
    "pixel": {"eps": 0.1, "lr": 0.05},
    "latent": {"eps": "noise", "lr": 0.5, "window": 2, "quantise": False, "anchor": 1.0, "decoder_error": 0.1},
    "refine": {"max_iters": 3},
}
OPERATORS = {
    "inpainting": {"mask_type": "random", "mask_prob_range": (0.3, 0.7)},
    "motion_blur": {"kernel_size": 9},
    "super_resolution": {"scale_factor": 4},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return instantiate_from_config(CONFIG["model"]).double().eval().requires_grad_(False)


def problems(operator, model, count):
    """So many measurements of random pictures, each with its own mask or kernel and, masked, its own share of noise."""
    task = Task({"name": operator, **OPERATORS[operator]}, {"name": "gaussian", "sigma": 0.2})
    for seed in range(count):
        image = torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        measurement = task.measure(image * (1 + seed), *(np.random.RandomState(seed + k) for k in (10, 20)))
        yield InverseProblem(
            measurement.y,
            task.operator.forward,
            task.condition_fn(measurement, model),
            task.noise.sigma,
            noisy_share=task.noise.noisy_share(**measurement.state),
            state=measurement.state,
            size=SHAPE[2:],
        )


OTHERS = {
    "dps": {"through_unet": True, "tweedie": "exact"},
    "psld": {"quantise": False},
    "daps": {"iterations": 4, "ode_steps": 2, "quantise": False, "decoder_error": 0.1},
    "sitcom": {"input": {"lr": 0.1, "max_iters": 4}, "quantise": False},
}


def restore(model, problem, seeds, settings=SETTINGS, steps=6, sampler="resample"):
    """Restored images, and the events of each."""
    told = []
    solver = Solver(sampler, steps, eta=0.5, settings=read(get_sampler(sampler).settings, settings, sampler))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = restore_images(model, problem, solver, told.append, generators)
    stages = [event for event in told if isinstance(event, StageEnded)]
    events = [[event for event in stages if event.sample == sample] for sample in range(len(seeds))]
    return images, events


def told(events):
    """The part that depends on neither time nor position."""
    return [(e.step, e.stage, e.iterations, e.stop, *e.evaluations[:3]) for e in events]


@pytest.mark.parametrize("operator", OPERATORS)
def test_each_image_is_restored_as_it_would_be_alone(model, operator):
    alone = list(problems(operator, model, 3))
    images, events = restore(model, InverseProblem.stack(alone), seeds=[5, 6, 7])
    lengths = set()
    for position, problem in enumerate(alone):
        own, (own_events,) = restore(model, problem, seeds=[5 + position])
        assert torch.allclose(images[position], own[0], rtol=0, atol=1e-9)
        assert told(events[position]) == told(own_events)
        losses = [[event.last_loss for event in some] for some in (events[position], own_events)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)
        assert all(event.stop in ("", "threshold", "plateau") for event in own_events if event.stage != "refine")
        lengths.add(tuple(event.iterations for event in own_events))
    assert len(lengths) > 1  # they do not all stop at the same time


def test_a_batch_of_one_is_what_it_is_made_of(model):
    (alone,) = problems("inpainting", model, 1)
    assert InverseProblem.stack([alone]) is alone


@pytest.mark.parametrize("sampler", OTHERS)
def test_each_image_is_restored_as_it_would_be_alone_by_every_sampler(model, sampler):
    alone = list(problems("inpainting", model, 2))
    how = {"settings": OTHERS[sampler], "sampler": sampler}
    images, events = restore(model, InverseProblem.stack(alone), seeds=[5, 6], **how)
    assert not torch.allclose(images[0], images[1], atol=0.01)
    for position, problem in enumerate(alone):
        own, (own_events,) = restore(model, problem, seeds=[5 + position], **how)
        assert torch.allclose(images[position], own[0], rtol=0, atol=1e-8)
        assert told(events[position]) == told(own_events)


def test_each_measurement_may_have_a_noise_level_of_its_own(model):
    alone = [
        replace(problem, noise_sigma=sigma)
        for problem, sigma in zip(problems("motion_blur", model, 2), (0.1, 0.4), strict=True)
    ]
    together = replace(InverseProblem.stack(alone), noisy_share=1.0)
    images, events = restore(model, together, seeds=[5, 6])
    for position, problem in enumerate(alone):
        own, (own_events,) = restore(model, problem, seeds=[5 + position])
        assert torch.allclose(images[position], own[0], rtol=0, atol=1e-9)
        assert told(events[position]) == told(own_events)


def test_one_generator_is_not_enough_for_a_batch_of_another_size(model):
    problem = InverseProblem.stack(list(problems("inpainting", model, 2)))
    with pytest.raises(UserError, match="3 generators for a batch of 2"):
        restore_images(model, problem, Solver(steps=2), generator=[torch.Generator()] * 3)


def test_selected_problems_keep_what_all_share():
    y, mask = torch.arange(3.0)[:, None], torch.arange(3.0)[:, None] + 10
    problem = InverseProblem(
        y,
        torch.mul,
        noise_sigma=(0.1, 0.2, 0.2),
        noisy_share=(1.0, 0.25, 0.25),
        state={"mask": mask, "shared": mask[:1]},
    )
    last = problem.select([1, 2], 3)
    assert torch.equal(last.measurement, y[1:])
    assert torch.equal(last.state["mask"], mask[1:])
    assert last.state["shared"] is problem.state["shared"]
    assert last.noise_sigma == 0.2
    assert last.noise_levels(2) == pytest.approx([0.1, 0.1])
    assert problem.select([0, 1], 3).noise_sigma == (0.1, 0.2)
    assert problem.select([0, 1, 2], 3) is problem


def test_measurements_that_do_not_go_together_are_refused():
    small, large = (InverseProblem(torch.zeros(1, side), torch.abs) for side in (2, 3))
    with pytest.raises(UserError, match="different shapes"):
        InverseProblem.stack([small, large])
    with pytest.raises(UserError, match="some"):
        InverseProblem.stack([small, InverseProblem(torch.zeros(1, 2), torch.abs, noise_sigma=0.1)])
