"""How far two sets of pictures are apart as sets: the Fréchet distance between Gaussians fitted to their features."""

import numpy as np


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
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * np.sqrt(common).sum())
