import numpy as np
import pytest

from tests.reference.recorded import recorded
from util.resizer import cubic, resize_matrix


def test_recorded_weights():
    arrays, _ = recorded("operators")
    weights = arrays["super_resolution/weights_256_x4"].squeeze().numpy()
    want = np.zeros((64, 256))
    for tap, field in zip(weights, arrays["super_resolution/field_of_view_256_x4"].numpy(), strict=True):
        np.add.at(want, (np.arange(64), field), tap)
    assert np.abs(resize_matrix(256, 64, 1 / 4) - want).max() < 1e-9


def test_cubic_interpolates_quadratics():
    """The kernel with a = -1/2 reproduces polynomials of second degree (Keys 1981)."""
    taps = np.arange(-1, 3)
    for t in (0.0, 0.3, 0.9):
        for power in range(3):
            assert cubic(t - taps) @ taps**power == pytest.approx(t**power, abs=1e-12)


@pytest.mark.parametrize(
    ("n_in", "n_out", "scale"), [(64, 16, 0.25), (10, 4, 1 / 3), (5, 1, 0.2), (16, 64, 4), (3, 9, 3)]
)
def test_rows_sum_to_one_and_are_symmetric(n_in, n_out, scale):
    matrix = resize_matrix(n_in, n_out, scale)
    assert matrix.shape == (n_out, n_in)
    assert np.abs(matrix.sum(1) - 1).max() < 1e-6
    assert np.abs(matrix - matrix[::-1, ::-1]).max() < 1e-6


def test_keeps_a_ramp_away_from_the_borders():
    """Centres coincide: pixel j of four times fewer stands at 4 j + 1.5."""
    got = resize_matrix(64, 16, 1 / 4) @ np.arange(64)
    assert np.abs(got - (4 * np.arange(16) + 1.5))[2:-2].max() < 1e-4


def test_same_size_is_the_identity():
    assert np.abs(resize_matrix(7, 7, 1.0) - np.eye(7)).max() == 0
