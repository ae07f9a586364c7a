import math

import numpy as np
import pytest
import torch

from ldm_inverse.measurements import get_operator

DELTA = np.eye(3)[1:2].T @ np.eye(3)[1:2]


def grey(value, size=16):
    return torch.full((1, 3, size, size), value, dtype=torch.float64)


def test_flat_pictures_stay_but_for_the_shoulder():
    operator = get_operator("camera_blur").double()
    for value in (-1.0, -0.4, 0.0, 0.5):
        x = grey(value, 64)
        y = operator(x, **operator.draw(x.shape, np.random.RandomState(0)))
        assert torch.allclose(y, x, atol=2e-3)


def test_saturates():
    operator = get_operator("camera_blur", kernel=DELTA).double()
    white, beyond = operator(grey(1.0)), operator(grey(3.0))
    assert 0.9 < white.max() < beyond.min() < 1 + 1e-12


def test_light_adds_up_not_pixel_values():
    """The mean of black and white light is brighter than mid-grey, by the response's closed form."""
    operator = get_operator("camera_blur", kernel=[[0.5, 0.5, 0.0]]).double()
    x = grey(-1.0)
    x[..., 8:] = 0.5
    contrast = 2 * math.log(1 / 0.218 - 1)
    value = math.log((1 + math.exp(0.75 * contrast)) / 2) / contrast
    shoulder = math.log1p(math.exp(20 * (value - 1))) / 20
    assert operator(x)[0, 0, 0, 8].item() == pytest.approx(2 * (value - shoulder) - 1, abs=1e-9)
    assert operator(x)[0, 0, 0, 8] > -0.25 + 0.1


def test_finite_for_impossible_scenes():
    operator = get_operator("camera_blur")
    x = torch.full((1, 3, 64, 64), -30.0)
    x[..., 32, 32] = 3.0
    x.requires_grad_()
    y = operator(x, **operator.draw(x.shape, np.random.RandomState(0)))
    y.square().mean().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
