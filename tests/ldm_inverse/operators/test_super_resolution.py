import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve, correlate
from skimage.data import astronaut

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


@pytest.mark.parametrize("size", [(24, 32), (23, 30)])
@pytest.mark.parametrize(("kind", "pillows"), [("area", "BOX"), ("nearest", "NEAREST"), ("lanczos", "LANCZOS")])
def test_downsampling_is_pillows(size, kind, pillows):
    x = np.random.RandomState(0).uniform(-1, 1, size).astype(np.float32)
    want = np.asarray(Image.fromarray(x).resize((8, 6), Image.Resampling[pillows]))
    y = get_operator("super_resolution", scale_factor=4, downsampling=kind)(torch.from_numpy(x)[None, None])
    assert np.abs(y[0, 0].numpy() - want).max() < 1e-5


def test_area_is_torchs():
    x = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (1, 3, 24, 30)))
    y = get_operator("super_resolution", scale_factor=3, downsampling="area").double()(x)
    assert torch.allclose(y, torch.nn.functional.interpolate(x, scale_factor=1 / 3, mode="area"), atol=1e-7)


@pytest.mark.parametrize(("phase", "first"), [(0, (0, 0)), (2, (2, 2)), ([0, 1], (0, 1))])
@pytest.mark.parametrize("kernel_is", ["correlation", "psf"])
def test_a_kernel_of_ones_own(phase, first, kernel_is):
    kernel = np.random.RandomState(1).uniform(size=(5, 7))
    kernel /= kernel.sum()
    x = np.random.RandomState(0).uniform(-1, 1, (24, 31))
    scipys = correlate if kernel_is == "correlation" else convolve
    want = scipys(x, kernel, mode="mirror")[first[0] :: 3, first[1] :: 3]
    operator = get_operator("super_resolution", scale_factor=3, kernel=kernel, kernel_is=kernel_is, phase=phase)
    y = operator.double()(torch.from_numpy(x)[None, None])
    assert np.abs(y[0, 0].numpy() - want).max() < 1e-6


def test_with_a_kernel_the_baseline_undoes_it():
    face = torch.from_numpy(astronaut()[40:136, 160:256].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    operator = get_operator("super_resolution", scale_factor=2, kernel=np.ones((5, 5)))
    y = operator(face)
    found = operator.baseline(y, face.shape, 0.01)
    plain = y.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert (found - face).square().mean() < 0.5 * (plain - face).square().mean()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale_factor": 0}, "scale_factor.*1 or more"),
        ({"scale_factor": 2.5}, "scale_factor.*2.5"),
        ({"scale_factor": True}, "scale_factor.*True"),
        ({"scale_factor": 4, "in_shape": (1, 3, 2, 64)}, "2 x 64 is too small for scale_factor 4"),
        ({"in_shape": 7}, "in_shape"),
        ({"downsampling": "linear"}, "downsampling: expected 'bicubic', 'area', 'nearest' or 'lanczos'"),
        ({"phase": 1}, "phase needs a kernel of your own"),
        ({"phase": 4, "kernel": np.ones((3, 3))}, r"phase: expected numbers below scale_factor \(4\), got \[4, 4\]"),
        ({"downsampling": "area", "kernel": np.ones((3, 3))}, "replaces downsampling=area"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words):
        get_operator("super_resolution", **settings)
