"""What a person would do without a model, as the measure of what a model adds."""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

LEAST_SIGMA = 1e-3  # an eighth of a grey level: below it, rounding is the noise
FILTER = "hann"  # of the filtered back-projection
TV_HALVINGS = 8  # of the range of weights

if TYPE_CHECKING:
    from scipy.spatial import Delaunay

    from ldm_inverse.operators.base import Operator


def baseline(
    operator: "Operator", y: Tensor, image_shape: Sequence[int], sigma: float | None, state: dict[str, Tensor]
) -> Tensor:
    """Return the baseline restoration of a measurement.

    Args:
        operator: what made the measurement.
        y: the measurement.
        image_shape: the image's (B, 3, H, W).
        sigma: standard deviation of the measurement noise, or None where it is not known.
        state: the operator's random state.

    Returns:
        an image of ``image_shape``, clipped to [-1, 1]; see `Operator.baseline` for what each operator does.
    """
    with torch.no_grad():
        return operator.baseline(y, image_shape, sigma, **state).clamp(-1, 1)


def interpolate(y: Tensor, mask: Tensor) -> Tensor:
    """Fill dropped pixels by linear interpolation of the kept ones (over a Delaunay triangulation), per image.

    Outside the convex hull of the kept pixels, the nearest of them is taken; where none is kept, zero.

    Args:
        y: (B, C, H, W), the kept pixels.
        mask: (B or 1, 1, H, W): 1 where a pixel is kept.
    """
    from scipy.interpolate import griddata  # slow to import
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


def _linear(triangles: "Delaunay", values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Interpolate values (N, C) of a triangulation's N corners at points (M, 2): (M, C), NaN outside.

    SciPy's own search for the triangle of a point tries each of them where the corners lie on a grid: half a minute for
    a picture of 128x128.
    """
    from matplotlib.tri import LinearTriInterpolator, Triangulation

    mesh = Triangulation(*triangles.points.T, triangles.simplices)
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
    from skimage.transform import iradon  # slow to import

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
    from skimage.restoration import denoise_nl_means  # slow to import

    def smooth(pixels: np.ndarray, deviation: float) -> np.ndarray:
        # 0.8 deviations is the filter's usual strength where it is told the noise.
        options = {"patch_size": 5, "patch_distance": 6, "h": 0.8 * deviation, "sigma": deviation, "channel_axis": -1}
        return denoise_nl_means(pixels, fast_mode=False, **options)

    return _smoothed(y, sigma, smooth)


def total_variation(y: Tensor, sigma: float | None) -> Tensor:
    """Remove white noise by total variation (Rudin, Osher and Fatemi 1992; scikit-image's, by Chambolle), per image.

    The weight is the one that takes as much away as there is noise (the discrepancy principle of Morozov).

    Args:
        y: (B, C, H, W).
        sigma: deviation of the noise; None: estimated from y.
    """
    from skimage.restoration import denoise_tv_chambolle  # slow to import

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
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).to(y))
    return torch.stack(images)


def hybrid_input_output(y: Tensor, pad: int, iterations: int = 300, tries: int = 4) -> Tensor:
    """Recover images from the magnitudes of their Fourier transforms by Fienup's hybrid input-output (Applied Optics
    1982, feedback 0.9) and some rounds of error reduction, per channel.

    An image is known to end at its borders and to stay in [-1, 1]. Of a few tries from random images, always the same
    ones, the one with the least residual is taken. Each channel may come out negated or turned by 180 degrees, which no
    magnitude tells; they are brought to agree with the green one.

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
            x = torch.where(inside & (fitted.abs() <= 1), fitted, x - 0.9 * fitted)
        else:
            x = torch.where(inside, fitted.clamp(-1, 1), 0)
    residual = (transform(x).abs() - magnitude).square().mean((-2, -1))
    x = x.gather(0, residual.argmin(0)[None, ..., None, None].expand(1, *x.shape[1:]))[0]
    return _turned_alike(x[..., pad : y.shape[-2] - pad, pad : y.shape[-1] - pad])


def _turned_alike(x: Tensor) -> Tensor:
    """Negate and turn the channels of images (B, C, H, W), so that they go with the second one."""
    choices = torch.stack([x, -x, x.flip(-2, -1), -x.flip(-2, -1)])
    green = x[:, 1:2] - x[:, 1:2].mean((-2, -1), keepdim=True)
    best = (choices * green).sum((-2, -1)).argmax(0)
    return choices.gather(0, best[None, ..., None, None].expand(1, *x.shape))[0]


def wiener(operator: "Operator", y: Tensor, sigma: float | None, state: dict[str, Tensor]) -> Tensor:
    r"""Undo a linear operator that keeps the image's size by Wiener's estimate, per image.

    That is the mean of x given y = A x + n, where n is white with deviation sigma and x has the power spectrum
    S ~ 1/f^2 of natural images (Field 1987), scaled to y's variance::

        x = argmin ||A x - y||^2 / sigma^2 + sum_f |DCT(x)_f|^2 / S_f

    For a circular A it is the textbook division in Fourier space. A blur with reflected borders is not circular, and
    dividing leaves rings that cost more than the blur did; so the normal equations are solved by conjugate gradients
    with A and its adjoint.

    Args:
        operator: linear, with measurements of the image's shape.
        y: (B, C, H, W).
        sigma: deviation of the noise; None: estimated from y.
        state: the operator's random state, for all of y's images or shared by them.
    """
    images = []
    for i in range(y.shape[0]):
        own = {key: value[i : i + 1] if value.shape[0] > 1 else value for key, value in state.items()}
        images.append(_wiener(operator, y[i : i + 1], sigma, own))
    return torch.cat(images)


def _wiener(operator: "Operator", y: Tensor, sigma: float | None, state: dict[str, Tensor]) -> Tensor:
    from scipy.fft import dctn, idctn
    from scipy.sparse.linalg import LinearOperator, cg

    mean = y.mean()
    centred = y - mean
    sigma = max(_estimate_sigma(y) if sigma is None else sigma, LEAST_SIGMA)
    height, width = y.shape[-2:]
    frequency = np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width) / (2 * width))
    frequency[0, 0] = np.inf  # the mean is free: no penalty
    spectrum = float(centred.square().mean()) / np.mean(frequency**-2) * frequency**-2
    with np.errstate(divide="ignore"):
        penalty = np.where(spectrum > 0, sigma**2 / spectrum, 0)

    def to_tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.reshape(y.shape)).to(y.dtype).to(y.device)

    def normal(x: np.ndarray) -> np.ndarray:
        data = operator.transpose(operator(to_tensor(x), **state), **state).cpu().double().numpy()
        prior = idctn(penalty * dctn(x.reshape(y.shape), axes=(-2, -1), norm="ortho"), axes=(-2, -1), norm="ortho")
        return (data + prior).ravel()

    right = operator.transpose(centred, **state).cpu().double().numpy().ravel()
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
