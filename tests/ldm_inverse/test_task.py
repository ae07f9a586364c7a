"""A task's measurements."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from data.measured import read_measured
from data.sources import Origin, source_of
from ldm_inverse.measurement import Measurement
from ldm_inverse.task import Task
from util.errors import UserError

INPAINTING = {"name": "inpainting", "mask_type": "random", "mask_prob_range": [0.7, 0.71]}
GAUSSIAN = {"name": "gaussian", "sigma": 0.1}
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def measure(task, seed=0):
    return task.measure(IMAGE, np.random.RandomState(seed), np.random.RandomState(seed + 1))


@pytest.mark.parametrize("on_dropped", [False, True])
def test_the_noise_level_is_that_of_each_measured_entry_and_the_truths_residual(on_dropped):
    task = Task(INPAINTING, {**GAUSSIAN, "noise_on_dropped": on_dropped})
    measurement = measure(task)
    assert task.noise_level(measurement) == 0.1
    assert task.residual(measurement, IMAGE) == pytest.approx(0.1, rel=0.03)


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
        with pytest.raises(UserError, match="not of this task's operator"):
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
    return Task(operator, CLEAN).given(Origin("a"), {"y": y, **state})


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
    with pytest.raises(UserError, match="not of this task's operator"):
        given({"name": "noise"}, y, mask=mask)


def feathered(path):
    """A dark picture with a hole whose edge is soft: its colours as levels (64, 64, 3), and its alpha from 0 to 1."""
    hole = Image.new("L", (64, 64), 255)
    hole.paste(0, (20, 20, 44, 44))
    alpha = np.asarray(hole.filter(ImageFilter.GaussianBlur(3)))
    colours = np.random.RandomState(0).randint(0, 40, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(np.dstack([colours, alpha])).save(path)
    return colours, alpha / 255


def read_and_given(operator, path, span=None):
    return Task(operator, CLEAN, span=span).given(Origin("a", source_of(path)), read_measured(path, span))[0]


@pytest.mark.parametrize("span", [None, (0.0, 1.0)])
@pytest.mark.parametrize("settings", [{}, {"mask_file": "alpha"}, {"mask_file": "alpha", "mask_threshold": 0.01}])
def test_a_soft_edge_of_an_alpha_channel_that_is_the_mask_mixes_no_white_in(settings, span, tmp_path):
    colours, alpha = feathered(tmp_path / "a.png")
    measurement = read_and_given({"name": "inpainting", **settings}, tmp_path / "a.png", span)
    kept = alpha >= settings.get("mask_threshold", 0.5)
    assert ((alpha < 1) & kept).mean() > 0
    assert np.array_equal(measurement.state["mask"][0, 0].numpy(), kept)
    expected = torch.from_numpy(kept[..., None] * (colours / 127.5 - 1)).permute(2, 0, 1)[None]
    assert torch.allclose(measurement.y, expected.float(), atol=1e-6)


@pytest.mark.parametrize("span", [None, (0.0, 1.0)])
def test_where_transparency_is_no_mask_it_is_laid_over_white(span, tmp_path, caplog):
    caplog.set_level(logging.INFO, "resample")
    colours, alpha = feathered(tmp_path / "a.png")
    np.save(tmp_path / "mask.npy", np.ones((64, 64)))
    white = torch.from_numpy(colours * alpha[..., None] + 255 * (1 - alpha[..., None])).permute(2, 0, 1)[None]
    for operator in ({"name": "noise"}, {"name": "inpainting", "mask_file": str(tmp_path / "mask.npy")}):
        caplog.clear()
        y = read_and_given(operator, tmp_path / "a.png", span).y
        assert torch.allclose(y, white.float() / 127.5 - 1, atol=1e-5)
        assert caplog.text.count("its transparent parts are laid over white") == 1


def test_a_given_measurement_has_the_noise_that_is_estimated_from_it():
    y = 0.1 * torch.from_numpy(np.random.RandomState(0).standard_normal((1, 3, 64, 64))).float()
    task = Task({"name": "noise"}, {"name": "gaussian", "sigma": "estimate"})
    measurement, _ = task.given(Origin("a"), {"y": y})
    assert task.noise_level(measurement) == pytest.approx(0.1, rel=0.05)
    again = task.accept(measurement.tensors(), torch.zeros_like(y))
    assert task.noise_level(again) == task.noise_level(measurement)
    task = Task({"name": "inpainting"}, {"name": "gaussian", "sigma": "estimate"})
    with pytest.raises(UserError, match="estimate cannot tell noise from the edges"):
        task.given(Origin("a"), {"y": y, "mask": torch.ones(1, 1, 64, 64)})


def picture_in(low, high, side=16):
    """A picture (1, 3, side, side) with black at low and white at high, and the same one in [-1, 1]."""
    unit = torch.from_numpy(np.random.RandomState(0).rand(1, 3, side, side)).float()
    return low + (high - low) * unit, 2 * unit - 1


UNITS = {
    "gaussian_blur": {"name": "gaussian_blur", "kernel_size": 5, "intensity": 1.0},
    "super_resolution": {"name": "super_resolution", "in_shape": [1, 3, 16, 16], "scale_factor": 4},
    "tomography": {"name": "tomography", "angles": 7},
}


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.0, 255.0), (-1000.0, 3000.0)])
def test_a_measurement_in_other_units_is_that_of_the_picture_in_the_models(name, span):
    task = Task(UNITS[name], {"name": "clean"}, span=span)
    theirs, ours = picture_in(*span)
    measurement, shape = task.given(Origin("a"), {"y": task.operator(theirs)})
    assert shape == (1, 3, 16, 16)
    assert torch.allclose(measurement.y, task.operator(ours), atol=1e-4)


def test_units_of_a_masked_picture_leave_what_is_dropped_at_zero():
    task = Task({"name": "inpainting"}, {"name": "clean"}, span=(0.0, 255.0))
    theirs, ours = picture_in(0, 255)
    mask = (torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    measurement, _ = task.given(Origin("a"), {"y": theirs, "mask": mask})
    assert torch.allclose(measurement.y, ours * mask, atol=1e-5)


def test_units_of_what_is_not_linear_are_those_of_each_value():
    task = Task({"name": "high_dynamic_range"}, {"name": "clean"}, span=(0.0, 255.0))
    y = task.operator(picture_in(-1, 1)[1])
    assert torch.allclose(task.given(Origin("a"), {"y": (y + 1) * 127.5})[0].y, y, atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian_blur", "super_resolution"])
def test_floats_in_0_255_are_refused_with_the_likely_cause(name):
    task = Task(UNITS[name], {"name": "gaussian", "sigma": 0.05})
    theirs, ours = picture_in(0, 255)
    with pytest.raises(
        UserError, match=r"far from those of this operator.*0\.\.255, give measurement\.range=\[0, 255\]$"
    ):
        task.given(Origin("a"), {"y": task.operator(theirs)})
    task.given(Origin("a"), {"y": task.operator(ours) + 0.2})


FAR = [(0.5, 255, "refused"), (0.5, 4095, "refused"), (0.5, 65535, "refused"), (60, 255, "said"), (100, 255, "said")]


@pytest.mark.parametrize(("sigma", "top", "how"), FAR)
def test_values_that_noise_cannot_explain_are_told_with_the_likely_cause(sigma, top, how, caplog):
    task = Task({"name": "noise"}, {"name": "gaussian", "sigma": sigma})
    y = picture_in(0, top)[0]
    if how == "refused":
        with pytest.raises(UserError, match=rf"give measurement\.range=\[0, {top}\]$"):
            task.given(Origin("a"), {"y": y})
    else:
        task.given(Origin("a"), {"y": y})
        assert f"give measurement.range=[0, {top}]" in caplog.text


def test_values_on_both_sides_that_noise_cannot_explain_are_told(caplog):
    task = Task({"name": "noise"}, {"name": "gaussian", "sigma": 0.5})
    task.given(Origin("a"), {"y": 4 * picture_in(-1, 1)[0]})
    assert "measurement.range=[BLACK, WHITE]" in caplog.text


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("name", UNITS)
def test_noise_alone_is_not_told(name, sigma, caplog):
    task = Task(UNITS[name], {"name": "gaussian", "sigma": sigma})
    picture = picture_in(-1, 1)[0].sign()  # of black and white
    measurement = task.measure(picture, *(np.random.RandomState(seed) for seed in (0, 1)))
    task.given(Origin("a"), {"y": measurement.y})
    assert caplog.text == ""


def test_a_sinogram_of_a_picture_from_0_to_1_is_told(caplog):
    task = Task(UNITS["tomography"], {"name": "clean"})
    task.given(Origin("a"), {"y": task.operator(torch.ones(1, 3, 16, 16))})
    assert "measurement.range=[0, 1]" in caplog.text
    caplog.clear()
    task.given(Origin("a"), {"y": task.operator(picture_in(-1, 1)[0])})
    assert caplog.text == ""


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.2])
def test_noise_does_not_hide_a_picture_from_0_to_1(sigma, caplog):
    noise = sigma * torch.randn(IMAGE.shape, generator=torch.Generator().manual_seed(1))
    task = Task({"name": "noise"}, {"name": "gaussian", "sigma": sigma})
    task.given(Origin("a", None), {"y": IMAGE + noise})
    assert not caplog.text
    task.given(Origin("a", None), {"y": (IMAGE + 1) / 2 + noise})
    assert "no value is below 0, but for the noise" in caplog.text
    assert "give measurement.range=[0, 1]" in caplog.text


def test_magnitudes_are_not_brought_to_other_units():
    task = Task({"name": "phase_retrieval"}, {"name": "clean"}, span=(0, 1))
    y = measure(Task({"name": "phase_retrieval"}, {"name": "clean"})).y
    with pytest.raises(UserError, match=r"measurement\.range cannot convert these values"):
        task.given(Origin("a", None), {"y": y})


def test_a_sinogram_of_sums_is_refused_with_the_likely_cause():
    task = Task(UNITS["tomography"], {"name": "clean"})
    with pytest.raises(UserError, match="divide the sums along rays.*by the image's longer side"):
        task.given(Origin("a"), {"y": 16 * task.operator(picture_in(0, 1)[0])})


def test_a_sinogram_with_its_sides_exchanged_is_told():
    task = Task(UNITS["tomography"], {"name": "clean"})
    y = task.operator(picture_in(-1, 1, 32)[0])
    with pytest.raises(UserError, match="last two sides exchanged it would be one of 32 x 32"):
        task.given(Origin("a"), {"y": y.transpose(-1, -2)})


@pytest.mark.parametrize("name", UNITS)
def test_a_grey_measurement_is_one_of_a_grey_picture(name):
    task = Task(UNITS[name], {"name": "clean"})
    ours = picture_in(-1, 1)[0][:, :1].expand(1, 3, 16, 16)
    y = task.operator(ours)
    assert torch.equal(task.given(Origin("a"), {"y": y[:, :1]})[0].y, y)
    assert task.given(Origin("a"), {"y": y[:, :1]}, channels=1)[1] == (1, 1, 16, 16)


def test_what_a_run_has_written_is_in_the_models_units_already():
    task = Task(UNITS["gaussian_blur"], {"name": "clean"}, span=(0.0, 255.0))
    y = task.operator(picture_in(-1, 1)[1])
    assert torch.equal(task.given(Origin("a"), {"y": y}, is_saved=True)[0].y, y)
