"""Baselines: restoration without a model, to measure what a model adds."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# SciPy, scikit-image and matplotlib are imported where they are used: together they take a second.

LEAST_SIGMA = 1e-3  # an eighth of a grey level: below it, rounding is the noise
FILTER = "hann"  # of the filtered back-projection
TV_HALVINGS = 8  # of the range of weights
FEEDBACK = 0.9  # of hybrid input-output
TYPICAL_DEVIATION = 0.5  # of an image's pixels in [-1, 1]

LinearMap = Callable[[Tensor], Tensor]


def interpolate(y: Tensor, mask: Tensor) -> Tensor:
    """Fill dropped pixels by linear interpolation of the kept ones (over a Delaunay triangulation), per image.

    Outside the convex hull of the kept pixels, the nearest of them is taken; where none is kept, zero.

    Args:
        y: (B, C, H, W), the kept pixels.
        mask: (B or 1, 1, H, W): 1 where a pixel is kept.
    """
    from scipy.interpolate import griddata
    from scipy.spatial import Delaunay, QhullError

    grid = np.indices(y.shape[-2:]).reshape(2, -1).T
    filled = y.clone()
    for image, kept in zip(filled, mask.expand(y.shape[0], -1, -1, -1) > 0, strict=True):
        kept = kept.flatten().cpu().numpy()
        if kept.all() or not kept.any():
            continue
        pixels = image.flatten(1).T.cpu().double().numpy()
        value = griddata(grid[kept], pixels[kept], grid[~kept], method="nearest")
        with contextlib.suppress(QhullError):  # too few pixels, or all on one line: there are no triangles
            linear = _linear(Delaunay(grid[kept]), pixels[kept], grid[~kept])
            value = np.where(np.isnan(linear), value, linear)
        pixels[~kept] = value
        image.copy_(torch.from_numpy(pixels.T).reshape(image.shape))
    return filled


def _linear(triangles: Any, values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Interpolate values (N, C) of the N corners of a `Delaunay` triangulation at points (M, 2): (M, C), NaN outside.

    SciPy's own search for the triangle of a point tries each of them where the corners lie on a grid: half a minute for
    a picture of 128x128.
    """
    from matplotlib.tri import LinearTriInterpolator, Triangulation

    x, y = triangles.points.T
    mesh = Triangulation(x, y, triangles.simplices)
    return np.stack([LinearTriInterpolator(mesh, z)(*points.T).filled(np.nan) for z in values.T], axis=1)


def filtered_back_projection(sinogram: Tensor, theta: np.ndarray, size: Sequence[int]) -> Tensor:
    """Invert the Radon transform by filtered back-projection (scikit-image's `iradon`), per channel.

    Args:
        sinogram: (B, C, angles, detectors), line integrals in pixels; the detectors see all of the image.
        theta: the angles in degrees.
        size: the images' (H, W).

    Returns:
        images (B, C, H, W).
    """
    from skimage.transform import iradon

    side = max(size)
    top, left = (side // 2 - n // 2 for n in size)
    options = {"theta": theta, "output_size": side, "filter_name": FILTER, "circle": False}
    images = [iradon(channel.T, **options) for channel in sinogram.flatten(0, 1).cpu().double().numpy()]
    stacked = torch.from_numpy(np.stack(images)[:, top : top + size[0], left : left + size[1]])
    return stacked.reshape(*sinogram.shape[:2], *size).to(sinogram)


def denoise(y: Tensor, sigma: float | None) -> Tensor:
    """Remove white noise by non-local means (Buades et al. 2005; scikit-image's), per image.

    Args:
        y: (B, C, H, W).
        sigma: deviation of the noise; None: estimated from y.
    """

    from skimage.restoration import denoise_nl_means

    def smooth(pixels: np.ndarray, deviation: float) -> np.ndarray:
        # 0.8 deviations is the filter's usual strength where it is told the noise.
        options = {"patch_size": 5, "patch_distance": 6, "h": 0.8 * deviation, "sigma": deviation, "channel_axis": -1}
        return denoise_nl_means(pixels, fast_mode=False, **options)

    return _smoothed(y, sigma, smooth)


def total_variation(y: Tensor, sigma: float | None) -> Tensor:
    """Remove white noise by total variation (Rudin, Osher and Fatemi 1992; scikit-image's, by Chambolle), per image.

    The weight is chosen so that as much is removed as there is noise (the discrepancy principle of Morozov).

    Args:
        y: (B, C, H, W).
        sigma: deviation of the noise; None: estimated from y.
    """

    from skimage.restoration import denoise_tv_chambolle

    def smooth(pixels: np.ndarray, deviation: float) -> np.ndarray:
        low, high = 0.0, 16 * deviation
        for _ in range(TV_HALVINGS):  # what is taken away grows with the weight
            weight = (low + high) / 2
            image = denoise_tv_chambolle(pixels, weight=weight, channel_axis=-1)
            low, high = (weight, high) if np.std(pixels - image) < deviation else (low, weight)
        return image

    return _smoothed(y, sigma, smooth)


def _smoothed(y: Tensor, sigma: float | None, smooth: Callable[[np.ndarray, float], np.ndarray]) -> Tensor:
    """Images (B, C, H, W), each by ``smooth`` of its pixels (H, W, C) and the deviation of its noise."""
    images = []
    for image in y:
        deviation = max(_estimate_sigma(image[None]) if sigma is None else sigma, LEAST_SIGMA)
        pixels = smooth(image.permute(1, 2, 0).cpu().double().numpy(), deviation)
        pixels = pixels.reshape(*image.shape[1:], -1)  # scikit-image leaves out a single channel
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).to(y))
    return torch.stack(images)


def hybrid_input_output(y: Tensor, pad: int, iterations: int = 300, tries: int = 4) -> Tensor:
    """Recover images from the magnitudes of their Fourier transforms by Fienup's hybrid input-output (Applied Optics
    1982) and some rounds of error reduction, per channel.

    An image is known to end at its borders and to stay in [-1, 1]. Of a few tries from random images, always the same
    ones, the one with the least residual is taken. A channel may come out negated or turned by 180 degrees, since the
    magnitudes are the same; all are made to agree with the green one.

    Args:
        y: (B, C, H + 2 pad, W + 2 pad), the centred transform's magnitudes, orthonormal.
        pad: zeros on each side of the image.
        iterations: of hybrid input-output.
        tries: how many random images to begin from.

    Returns:
        images (B, C, H, W).
    """
    magnitude = torch.fft.ifftshift(y.clamp_min(0), dim=(-2, -1))[..., : y.shape[-1] // 2 + 1]
    inside = torch.zeros(y.shape[-2:], dtype=torch.bool, device=y.device)
    inside[pad : y.shape[-2] - pad, pad : y.shape[-1] - pad] = True
    start = np.random.RandomState(0).uniform(-1, 1, (tries, *y.shape[1:]))
    x = torch.from_numpy(start).to(y)[:, None] * inside

    def transform(x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, norm="ortho")

    for iteration in range(iterations + iterations // 8):
        spectrum = transform(x)
        phase = spectrum / spectrum.abs().clamp_min(1e-12)
        fitted = torch.fft.irfft2(magnitude * phase, s=y.shape[-2:], norm="ortho")
        if iteration < iterations:
            x = torch.where(inside & (fitted.abs() <= 1), fitted, x - FEEDBACK * fitted)
        else:
            x = torch.where(inside, fitted.clamp(-1, 1), 0)
    residual = (transform(x).abs() - magnitude).square().mean((-2, -1))
    x = x.gather(0, residual.argmin(0)[None, ..., None, None].expand(1, *x.shape[1:]))[0]
    return _turned_alike(x[..., pad : y.shape[-2] - pad, pad : y.shape[-1] - pad])


def _turned_alike(x: Tensor) -> Tensor:
    """Negate and turn the channels of images (B, C, H, W), so that they agree with the middle one."""
    choices = torch.stack([x, -x, x.flip(-2, -1), -x.flip(-2, -1)])
    middle = x[:, x.shape[1] // 2, None]  # green, or the only one
    best = (choices * (middle - middle.mean((-2, -1), keepdim=True))).sum((-2, -1)).argmax(0)
    return choices.gather(0, best[None, ..., None, None].expand(1, *x.shape))[0]


def wiener(
    apply: LinearMap,
    adjoint: LinearMap,
    y: Tensor,
    sigma: float | None,
    size: Sequence[int],
    keeps_constants: bool = True,
    channels: int | None = None,
) -> Tensor:
    r"""Undo a linear operator by Wiener's estimate, for one image.

    That is the mean of x given y = A x + n, where n is white with deviation sigma and x has the power spectrum
    S ~ 1/f^2 of natural images (Field 1987), scaled to y's variance::

        x = argmin ||A x - y||^2 / sigma^2 + sum_f |DCT(x)_f|^2 / S_f

    For a circular A it is the textbook division in Fourier space. A blur with reflected borders is not circular, and
    dividing leaves rings that cost more than the blur did; so the normal equations are solved by conjugate gradients
    with A and its adjoint.

    Args:
        apply: A, of images (1, C, H, W).
        adjoint: its adjoint.
        y: the measurement, (1, C, h, w), or of any shape with ``channels``.
        sigma: deviation of the noise; None: estimated from y.
        size: the image's (H, W).
        keeps_constants: whether A of a constant image is that constant; else the image's mean is fitted, and its
            deviation taken as `TYPICAL_DEVIATION`.
        channels: C, where that is not y's second side.
    """
    from scipy.fft import dctn, idctn
    from scipy.sparse.linalg import LinearOperator, cg

    height, width = size
    shape = (1, y.shape[1] if channels is None else channels, height, width)
    sigma = max(_estimate_sigma(y) if sigma is None else sigma, LEAST_SIGMA)
    if keeps_constants:
        mean = y.mean()
        centred = y - mean
        variance = float(centred.square().mean())
    else:
        flat = apply(y.new_ones(shape))
        mean = (flat * y).sum() / flat.square().sum().clamp_min(1e-30)
        centred = y - mean * flat
        variance = TYPICAL_DEVIATION**2
    frequency = np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width) / (2 * width))
    frequency[0, 0] = np.inf  # the mean is free: no penalty
    spectrum = variance / np.mean(frequency**-2) * frequency**-2
    with np.errstate(divide="ignore"):
        penalty = np.where(spectrum > 0, sigma**2 / spectrum, 0)

    def to_tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.reshape(shape)).to(y.dtype).to(y.device)

    def normal(x: np.ndarray) -> np.ndarray:
        data = adjoint(apply(to_tensor(x))).cpu().double().numpy()
        prior = idctn(penalty * dctn(x.reshape(shape), axes=(-2, -1), norm="ortho"), axes=(-2, -1), norm="ortho")
        return (data + prior).ravel()

    right = adjoint(centred).cpu().double().numpy().ravel()
    system = LinearOperator((right.size, right.size), matvec=normal, dtype=np.float64)
    solution, _ = cg(system, right, rtol=1e-4, maxiter=100)
    return to_tensor(solution) + mean


def _estimate_sigma(y: Tensor) -> float:
    """Estimate the deviation of white noise: the mean absolute response to a mask that is blind to slopes.

    J. Immerkær, "Fast noise variance estimation", 1996. The mask's squared entries sum to 36, and the mean absolute
    value of a normal variable is sqrt(2 / pi) deviations.
    """
    second = torch.tensor([1.0, -2.0, 1.0], dtype=y.dtype, device=y.device)
    mask = torch.outer(second, second).expand(y.shape[1], 1, 3, 3)
    response = torch.nn.functional.conv2d(y, mask, groups=y.shape[1])
    return float(response.abs().mean()) / 6 * (np.pi / 2) ** 0.5
