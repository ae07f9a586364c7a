"""How much several restorations of one measurement differ, and how often the truth lies among them."""

from collections.abc import Sequence

import numpy as np

COVERED = 0.9  # the share of draws that the interval of `coverage` holds


def mean_and_deviation(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the sample deviation (n - 1) of each entry, as 8-bit pixels like those given.

    Args:
        pictures: two or more restorations, 8-bit (H, W, C).
    """
    stack = np.stack(pictures).astype(np.float64)
    mean, deviation = stack.mean(0), stack.std(0, ddof=1)
    return np.rint(mean).astype(np.uint8), np.rint(deviation).astype(np.uint8)


def coverage(truth: np.ndarray, pictures: Sequence[np.ndarray]) -> float:
    """Return the share of entries of a truth that lie in the 90 % interval of as few draws as there are.

    It is the interval that holds the next draw of a Gaussian in 90 % of cases: the mean of the n draws, and Student's
    quantile times their deviation times sqrt(1 + 1/n) to either side. A sampler of the true posterior reaches 0.9 where
    that is about Gaussian; a lower share means that its draws vary too little, a higher one that they vary too much.
    Half a level of rounding is allowed for.

    Args:
        truth: 8-bit (H, W, C).
        pictures: two or more restorations of the same shape.
    """
    from scipy.special import stdtrit  # slow to import

    stack, count = np.stack(pictures).astype(np.float64), len(pictures)
    width = stdtrit(count - 1, (1 + COVERED) / 2) * stack.std(0, ddof=1) * np.sqrt(1 + 1 / count)
    return float((np.abs(truth - stack.mean(0)) <= width + 0.5).mean())
