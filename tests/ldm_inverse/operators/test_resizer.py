import numpy as np
import pytest

from ldm_inverse.operators.resizer import cubic, resize_matrix
from tests.reference.recorded import recorded


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
    ("n_in", "n_out", "scale"), [(64, 16, 0.25), (12, 4, 1 / 3), (5, 1, 0.2), (16, 64, 4), (3, 9, 3)]
)
def test_rows_sum_to_one_and_are_symmetric(n_in, n_out, scale):
    matrix = resize_matrix(n_in, n_out, scale)
    assert matrix.shape == (n_out, n_in)
    assert np.abs(matrix.sum(1) - 1).max() < 1e-6
    assert np.abs(matrix - matrix[::-1, ::-1]).max() < 1e-6


@pytest.mark.parametrize("n_in", [64, 63, 62, 61])
def test_keeps_a_ramp_away_from_the_borders(n_in):
    """As in imresize, pixel j of four times fewer stands at 4 j + 1.5, also where 4 does not divide the row."""
    got = resize_matrix(n_in, 16, 1 / 4) @ np.arange(n_in)
    assert np.abs(got - (4 * np.arange(16) + 1.5))[2:-3].max() < 1e-4


def test_is_imresize_where_the_factor_does_not_divide():
    """By imresize's contributions as its source documents them: u = x / scale + (1 - 1 / scale) / 2, counted from 1."""
    n, scale = 10, 1 / 3
    row = np.random.RandomState(0).uniform(size=n)
    want = []
    for x in range(1, 5):
        u = x / scale + 0.5 * (1 - 1 / scale)
        taps = np.arange(np.floor(u - 2 / scale), np.floor(u - 2 / scale) + np.ceil(4 / scale) + 2).astype(int)
        weights = scale * cubic(scale * (u - taps))
        mirrored = np.concatenate([np.arange(1, n + 1), np.arange(n, 0, -1)])[(taps - 1) % (2 * n)]
        want.append(weights / weights.sum() @ row[mirrored - 1])
    assert np.abs(resize_matrix(n, 4, scale) @ row - want).max() < 1e-6


def test_same_size_is_the_identity():
    assert np.abs(resize_matrix(7, 7, 1.0) - np.eye(7)).max() == 0
