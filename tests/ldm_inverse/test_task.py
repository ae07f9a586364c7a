"""A task's measurements."""

import numpy as np
import pytest
import torch

from ldm_inverse.task import Measurement, Task
from util.errors import UserError

INPAINTING = {"name": "inpainting", "mask_type": "random", "mask_prob_range": [0.7, 0.71]}
GAUSSIAN = {"name": "gaussian", "sigma": 0.1}
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def measure(task, seed=0):
    return task.measure(IMAGE, np.random.RandomState(seed), np.random.RandomState(seed + 1))


@pytest.mark.parametrize("on_dropped", [False, True])
def test_the_noise_level_is_the_root_mean_square_of_the_noise(on_dropped):
    task = Task(INPAINTING, {**GAUSSIAN, "noise_on_dropped": on_dropped})
    measurement = measure(task)
    noise = measurement.y - IMAGE * measurement.state["mask"]
    assert task.noise_level(measurement) == pytest.approx(noise.square().mean().sqrt().item(), rel=0.03)


def test_the_noise_level_of_what_depends_on_the_signal_is_not_known():
    task = Task({"name": "noise"}, {"name": "poisson", "rate": 1.0})
    assert task.noise_level(measure(task)) is None


def test_noise_has_a_stream_of_its_own():
    quiet, loud = (measure(Task(INPAINTING, {**GAUSSIAN, "sigma": sigma})) for sigma in (0.1, 0.2))
    assert torch.equal(quiet.state["mask"], loud.state["mask"])
    kept = quiet.state["mask"].expand_as(IMAGE) > 0
    assert torch.allclose(2 * (quiet.y - IMAGE)[kept], (loud.y - IMAGE)[kept], atol=1e-5)


def test_a_saved_measurement_is_accepted_back_or_refused():
    task = Task(INPAINTING, GAUSSIAN)
    measurement = measure(task)
    back = task.accept(measurement.tensors(), IMAGE)
    assert torch.equal(back.y, measurement.y)
    assert torch.equal(back.state["mask"], measurement.state["mask"])
    for tensors in ({"y": measurement.y}, {"mask": measurement.state["mask"]}, {**measurement.tensors(), "z": IMAGE}):
        with pytest.raises(UserError, match="none of this task's operator"):
            task.accept(tensors, IMAGE)
    small = Measurement(measurement.y[..., :32], measurement.state)
    with pytest.raises(UserError, match="shape"):
        task.accept(small.tensors(), IMAGE)


def test_the_functions_for_the_sampler_use_the_measurements_own_state():
    task = Task(INPAINTING, GAUSSIAN)
    first, second = measure(task, 0), measure(task, 5)
    for measurement in (first, second):
        assert torch.equal(task.operator_fn(measurement)(IMAGE), IMAGE * measurement.state["mask"])
    assert not torch.equal(first.state["mask"], second.state["mask"])
