"""How near a restoration is to the truth. scikit-image computes; here its settings are fixed."""

import numpy as np


def psnr(truth: np.ndarray, image: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in decibels, infinite for equal images.

    Args:
        truth: (H, W, C) in [0, 1].
        image: the same.
    """
    from skimage.metrics import peak_signal_noise_ratio  # slow to import

    if np.array_equal(truth, image):
        return float("inf")
    return float(peak_signal_noise_ratio(truth, image, data_range=1.0))


def ssim(truth: np.ndarray, image: np.ndarray) -> float:
    """Return the mean structural similarity (Wang et al. 2004) over channels: 7x7 uniform window, data range 1.

    Args:
        truth: (H, W, C) in [0, 1], both sides 7 or more.
        image: the same.
    """
    from skimage.metrics import structural_similarity  # slow to import

    return float(structural_similarity(truth, image, data_range=1.0, channel_axis=-1))
