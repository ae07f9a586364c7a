import numpy as np
import pytest
import torch
from PIL import Image

from ldm_inverse.measurements import get_operator
from tests.reference.recorded import recorded, relative_error
from util.errors import UserError


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_recorded(scale):
    arrays, _ = recorded("operators")
    operator = get_operator("super_resolution", in_shape=(1, 3, 64, 64), scale_factor=scale).double()
    assert relative_error(operator(arrays["image"]), arrays[f"super_resolution/{scale}"]) < 1e-14


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_agrees_with_pillow_away_from_the_borders(scale):
    """Pillow has the same kernel but cuts it off at the borders, which it does not mirror."""
    n = 24 * scale
    x = np.random.RandomState(0).uniform(-1, 1, (n, n)).astype(np.float32)
    want = np.asarray(Image.fromarray(x).resize((24, 24), Image.Resampling.BICUBIC))
    operator = get_operator("super_resolution", scale_factor=scale)
    got = operator(torch.from_numpy(x).expand(1, 3, n, n))[0, 0].numpy()
    assert np.abs(got - want)[2:-2, 2:-2].max() < 1e-5


@pytest.mark.parametrize(
    ("size", "scale", "out"), [((64, 48), 4, (16, 12)), ((33, 10), 4, (9, 3)), ((7, 5), 5, (2, 1))]
)
def test_output_size(size, scale, out):
    y = get_operator("super_resolution", scale_factor=scale)(torch.ones(2, 3, *size))
    assert y.shape == (2, 3, *out)
    assert torch.allclose(y, torch.ones(()), atol=1e-5)


def test_adjoint_without_shape_assumes_a_multiple():
    operator = get_operator("super_resolution", scale_factor=4)
    assert operator.transpose(torch.ones(1, 3, 4, 6)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale_factor": 0}, "scale_factor.*1 or more"),
        ({"scale_factor": 2.5}, "scale_factor.*2.5"),
        ({"scale_factor": True}, "scale_factor.*True"),
        ({"scale_factor": 4, "in_shape": (1, 3, 2, 64)}, "2 x 64 is too small for scale_factor 4"),
        ({"in_shape": 7}, "in_shape"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words):
        get_operator("super_resolution", **settings)
