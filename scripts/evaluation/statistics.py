"""Means of what was measured on each image, and how far they can be trusted."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 9999


class Summary(NamedTuple):
    """The statistics of a metric over n images.

    Attributes:
        mean: over the images.
        sd: standard deviation over the images (n - 1 in the denominator); None for one image.
        low, high: the 95 % bootstrap interval of the mean; None for one image.
        n: how many images.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


def summarise(values: Iterable[float], seed: int = 0) -> Summary:
    """Summarise one number for each image; one that is not finite (the PSNR of equal pictures) leaves only the mean.

    The interval is the bias-corrected and accelerated bootstrap's (Efron, 1987) over images, from its own seed.
    """
    from scipy.stats import bootstrap  # slow to import

    x = np.fromiter(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2 or not math.isfinite(mean):
        return Summary(mean, None, None, None, len(x))
    if np.ptp(x) == 0:  # nothing to resample
        return Summary(mean, 0.0, mean, mean, len(x))
    batch = max(1, 2**22 // len(x))  # resamples at a time: 32 MB
    rng = np.random.default_rng(seed)
    interval = bootstrap(
        (x,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, batch=batch, random_state=rng
    ).confidence_interval
    return Summary(mean, float(x.std(ddof=1)), float(interval.low), float(interval.high), len(x))
