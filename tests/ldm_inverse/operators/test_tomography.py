"""Against scikit-image's Radon transform."""

import numpy as np
import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import radon, resize

from ldm_inverse.measurements import get_operator
from ldm_inverse.operators.tomography import detectors
from util.errors import UserError

PHANTOM = 2 * resize(shepp_logan_phantom(), (96, 96), anti_aliasing=True) - 1


def channels(picture):
    return torch.from_numpy(np.stack([picture, picture[::-1], picture.T]).copy())[None]


@pytest.mark.parametrize("angles", [1, 25, 60])
def test_agrees_with_scikit_image(angles):
    operator = get_operator("tomography", angles=angles).double()
    x = channels(PHANTOM)
    want = np.stack([radon(c.numpy(), operator.theta, circle=False).T for c in x[0]]) / 96
    got = operator(x)[0].numpy()
    assert got.shape == want.shape == (3, angles, 136)
    assert np.linalg.norm(got - want) < 0.003 * np.linalg.norm(want)
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("size", [(40, 65), (65, 40), (41, 41)])
def test_other_sizes_agree_with_scikit_image(size):
    x = channels(resize(PHANTOM, (65, 65), anti_aliasing=True))[..., : size[0], : size[1]]
    operator = get_operator("tomography", angles=30).double()
    want = np.stack([radon(c.numpy(), operator.theta, circle=False).T for c in x[0]]) / max(size)
    got = operator(x)[0].numpy()
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) < 0.005 * np.linalg.norm(want)


def test_every_angle_sees_all_of_the_image():
    x = torch.rand(1, 3, 20, 31, dtype=torch.float64)
    y = get_operator("tomography", angles=17).double()(x)
    sums = y.sum(-1) * 31
    assert torch.allclose(sums[..., 0], x.sum((-2, -1)))
    # Between pixels' centres a ray takes what linear interpolation says: the sum is kept to a few per cent.
    assert torch.allclose(sums, x.sum((-2, -1)).unsqueeze(-1).expand_as(sums), rtol=0.05)


def test_adjoint_without_shape_assumes_a_square():
    operator = get_operator("tomography", angles=3)
    for side in (8, 29, 128):
        y = operator(torch.ones(1, 3, side, side))
        assert operator.transpose(y).shape == (1, 3, side, side)


def test_a_sinogram_tells_the_size_of_its_image():
    operator = get_operator("tomography", angles=3)
    for side in range(1, 600):
        assert operator.image_size((1, 3, 3, detectors((side, side)))) == (side, side)


def test_filtered_back_projection_comes_near():
    x = channels(PHANTOM)
    errors = []
    for angles in (10, 25, 120):
        operator = get_operator("tomography", angles=angles).double()
        restored = operator.baseline(operator(x), x.shape, 0.0).clamp(-1, 1)
        errors.append((restored - x).square().mean().sqrt().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.4 * x.std()
    oblong = x[..., 20:80, :]
    restored = operator.baseline(operator(oblong), oblong.shape, 0.0).clamp(-1, 1)
    assert (restored - oblong).square().mean().sqrt() < 0.4 * oblong.std()


def test_the_picture_is_about_square():
    operator = get_operator("tomography", angles=25)
    y = operator(torch.rand(1, 3, 64, 64))
    picture = operator.picture(y)
    assert picture.shape == (1, 3, 100, 91)
    assert torch.equal(picture[..., ::4, :], y)


@pytest.mark.parametrize("value", [0, 721, 2.5, "many"])
def test_bad_settings(value):
    with pytest.raises(UserError, match="angles: expected a whole number from 1 to 720"):
        get_operator("tomography", angles=value)
