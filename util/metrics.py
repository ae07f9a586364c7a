"""How near a picture is to the truth, by scikit-image with fixed settings; how near a set of pictures is to another."""

from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor


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


def describe() -> str:
    """Return in words what `psnr` and `ssim` compute."""
    return (
        f"PSNR and SSIM by scikit-image {version('scikit-image')} on 8-bit RGB, data range 1; "
        "SSIM over a uniform 7x7 window, mean of the channels"
    )


def to_uint8(image: Tensor) -> np.ndarray:
    """Turn an image (1, C, H, W) or (C, H, W) in [-1, 1] into 8 bits (H, W, C), clipped and never stretched."""
    image = image.detach().reshape(image.shape[-3:]).float().cpu().clamp(-1, 1)
    return ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def score(truth: Tensor, image: Tensor) -> tuple[float, float]:
    """Return PSNR in decibels and SSIM of an image (1, 3, H, W) in [-1, 1], both as 8 bits, as they are written."""
    pair = to_uint8(truth) / 255, to_uint8(image) / 255
    return psnr(*pair), ssim(*pair)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared 2-Wasserstein distance between the Gaussians fitted to two sets (Dowson and Landau, 1982).

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``, as in the Fréchet inception distance (Heusel et al., 2017).
    Few samples overestimate it: compare sets of one size only.

    Args:
        a: features (N, F), N at least 2.
        b: features (M, F).
    """
    means, covariances = zip(*((x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b)), strict=True)
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0))  # root root^T is the covariance
    # The product of two covariances has the same eigenvalues as this symmetric matrix.
    common = np.linalg.eigvalsh(root.T @ covariances[1] @ root).clip(0)
    traces = np.trace(covariances[0]) + np.trace(covariances[1])
    distance = np.square(means[0] - means[1]).sum() + traces - 2 * np.sqrt(common).sum()
    return max(0.0, float(distance))  # rounding leaves less than nothing of equal sets
