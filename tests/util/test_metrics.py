import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from util.metrics import psnr, ssim


@pytest.fixture
def pictures():
    rng = np.random.RandomState(0)
    truth = rng.uniform(0, 1, (24, 32, 3))
    return truth, np.clip(truth + rng.normal(0, 0.1, truth.shape), 0, 1)


def test_are_those_of_scikit_image(pictures):
    assert psnr(*pictures) == peak_signal_noise_ratio(*pictures, data_range=1)
    assert ssim(*pictures) == structural_similarity(*pictures, data_range=1, channel_axis=2)


def test_known_values(pictures):
    truth, _ = pictures
    assert psnr(truth, truth + 0.1) == pytest.approx(20, abs=1e-9)
    assert psnr(truth, truth) == math.inf
    assert ssim(truth, truth) == pytest.approx(1)
