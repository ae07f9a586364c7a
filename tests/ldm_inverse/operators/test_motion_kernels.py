import numpy as np
import pytest

from ldm_inverse.operators.motion_kernels import motion_blur_kernel
from tests.reference.recorded import recorded


@pytest.mark.parametrize(("intensity", "seed"), [(0.5, 1), (0.1, 2), (1.0, 3)])
def test_recorded(intensity, seed):
    arrays, _ = recorded("operators")
    want = arrays[f"motion_blur/61_{intensity}_seed{seed}/kernel"].numpy()
    assert np.abs(motion_blur_kernel(61, intensity, np.random.RandomState(seed)) - want).max() <= 1e-6 * want.max()


@pytest.mark.parametrize("size", [3, 4, 5, 7, 13, 53, 54, 61])
def test_any_size_and_intensity(size):
    for intensity in (0, 0.01, 0.5, 1):
        for seed in range(10):
            kernel = motion_blur_kernel(size, intensity, np.random.RandomState(seed))
            assert kernel.shape == (size, size)
            assert kernel.dtype == np.float32
            assert (kernel >= 0).all()
            assert kernel.sum() == pytest.approx(1, abs=1e-5)


def spread(intensity):
    """How far from a straight line 20 kernels are: mean ratio of the smaller to the larger principal deviation."""
    ratios = []
    for seed in range(20):
        kernel = motion_blur_kernel(61, intensity, np.random.RandomState(seed))
        points = np.argwhere(kernel > 0) - np.average(np.argwhere(kernel > 0), axis=0)
        low, high = np.linalg.eigvalsh(np.cov(points.T, aweights=kernel[kernel > 0]))
        ratios.append((max(low, 0) / high) ** 0.5)
    return np.mean(ratios)


def test_intensity_makes_the_path_crooked():
    assert spread(0.0) < 0.7 * spread(1.0)
