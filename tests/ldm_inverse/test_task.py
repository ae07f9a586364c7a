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


CLEAN = {"name": "clean"}


def given(operator, y, **state):
    return Task(operator, CLEAN).given("a", {"y": y, **state})


def test_the_image_of_a_given_measurement_has_the_size_that_the_operator_tells():
    y = torch.rand(1, 3, 8, 12)
    assert given({"name": "super_resolution", "scale_factor": 3}, y)[1] == (1, 3, 24, 36)
    assert given({"name": "noise"}, y)[1] == (1, 3, 8, 12)
    assert given({"name": "phase_retrieval", "oversample": 0.25}, torch.rand(1, 3, 40, 48))[1] == (1, 3, 24, 32)
    assert given({"name": "colourisation"}, y[:, :1])[1] == (1, 3, 8, 12)
    assert given({"name": "colourisation"}, y[:, :1].repeat(1, 3, 1, 1))[0].y.shape == (1, 1, 8, 12)  # a grey PNG
    with pytest.raises(UserError, match=r"\(1, 3, 8, 12\), and that of an image of 8 x 12 would have \(1, 1, 8, 12\)"):
        given({"name": "colourisation"}, y)


def test_state_that_is_random_has_to_be_given(tmp_path):
    y = torch.rand(1, 3, 16, 16)
    masks = {"name": "inpainting", "mask_type": "random", "mask_prob_range": (0.5, 0.6)}
    with pytest.raises(UserError, match="draws the mask at random"):
        given(masks, y)
    with pytest.raises(UserError, match="draws the kernel at random"):
        given({"name": "motion_blur", "kernel_size": 5}, y)
    mask = (torch.rand(1, 1, 16, 16) < 0.5).float()
    np.save(tmp_path / "mask.npy", mask[0, 0].numpy())
    for measurement, _ in (
        given(masks, y, mask=mask),
        given({"name": "inpainting", "mask_file": str(tmp_path / "mask.npy")}, y),
    ):
        assert torch.equal(measurement.state["mask"], mask)
        assert torch.equal(measurement.y, y * mask)  # whatever the picture shows where nothing was measured
    assert given({"name": "motion_blur", "kernel": np.ones((3, 3)).tolist()}, y)[0].state == {}
    assert given({"name": "motion_blur"}, y, kernel=torch.ones(1, 1, 3, 3))[0].state["kernel"].shape == (1, 1, 3, 3)
    with pytest.raises(UserError, match="none of this task's operator"):
        given({"name": "noise"}, y, mask=mask)


def test_a_given_measurement_has_the_noise_that_is_estimated_from_it():
    y = 0.1 * torch.from_numpy(np.random.RandomState(0).standard_normal((1, 3, 64, 64))).float()
    task = Task({"name": "noise"}, {"name": "gaussian", "sigma": "estimate"})
    measurement, _ = task.given("a", {"y": y})
    assert task.noise_level(measurement) == pytest.approx(0.1, rel=0.05)
    task = Task({"name": "inpainting"}, {"name": "gaussian", "sigma": "estimate"})
    with pytest.raises(UserError, match="estimate cannot tell noise from the edges"):
        task.given("a", {"y": y, "mask": torch.ones(1, 1, 64, 64)})
