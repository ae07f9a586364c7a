"""Random kernels of a camera in motion."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_STEP_BETA = (1, 30)  # of a step's share of the diagonal: mean 1/31
_JITTER_BETA = (2, 20)  # of how often the turning direction flips: mean 1/11


def motion_blur_kernel(size: int, intensity: float, rng: np.random.RandomState) -> np.ndarray:
    """Draw the kernel of a camera that moves along a random path while the shutter is open.

    The path is a random walk with persistent turns, drawn as a line at twice the resolution, softened and shrunk.

    Args:
        size: side of the kernel in pixels, from 3.
        intensity: how crooked the path is, from 0 (nearly straight) to 1.
        rng: source of every random choice.

    Returns:
        (size, size) float32, not negative, sum one.
    """
    canvas = 2 * size
    diagonal = canvas * 2**0.5
    path = _path(diagonal, intensity, rng)
    path = (path - path.mean()) * np.exp(1j * rng.uniform(0, np.pi)) + canvas * (1 + 1j) / 2
    picture = Image.new("RGB", (canvas, canvas))
    # Below size 54 the published width is 0, which no longer draws anything.
    width = max(1, int(diagonal / 150))
    ImageDraw.Draw(picture).line([(p.real, p.imag) for p in path], fill=(255, 255, 255), width=width)
    picture = picture.filter(ImageFilter.GaussianBlur(radius=int(diagonal * 0.01)))
    picture = picture.resize((size, size), resample=Image.Resampling.LANCZOS).convert("L")
    kernel = np.asarray(picture, dtype=np.float32)
    if not kernel.any():  # a path outside the picture, or fainter than a grey level: a camera at rest
        kernel = np.zeros_like(kernel)
        kernel[size // 2, size // 2] = 1
    return kernel / kernel.sum()


def _path(diagonal: float, intensity: float, rng: np.random.RandomState) -> np.ndarray:
    """Draw the path's points as complex numbers."""
    longest = 0.75 * diagonal * (rng.uniform() + rng.uniform(0, intensity**2))
    steps = np.array(list(_steps(longest, diagonal, intensity, rng)))
    largest_angle = rng.uniform(0, intensity * np.pi)
    jitter = rng.beta(*_JITTER_BETA)
    angles = [rng.uniform(-largest_angle, largest_angle)]
    for _ in steps[1:]:
        angle = rng.triangular(0, intensity * largest_angle, largest_angle + 0.1)
        sign = -1 if angles[-1] < 0 else 1
        if rng.uniform() < jitter:
            sign = -sign
        angles.append(sign * angle)
    return np.cumsum(steps * np.exp(1j * np.array(angles)))


def _steps(longest: float, diagonal: float, intensity: float, rng: np.random.RandomState) -> Iterator[float]:
    """Draw the lengths of the path's steps until their sum reaches ``longest``."""
    total = 0.0
    while total < longest:
        step = rng.beta(*_STEP_BETA) * (1 - intensity + 0.1) * diagonal
        if step < longest:
            total += step
            yield step
