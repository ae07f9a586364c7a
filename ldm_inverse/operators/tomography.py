"""Parallel-beam computed tomography."""

import math
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ldm_inverse.baselines import filtered_back_projection
from ldm_inverse.operators.base import OPERATORS, Latest, Operator, linear_map
from util.settings import whole

MAX_ANGLES = 720


@OPERATORS.register("tomography")
class Tomography(Operator):
    """A(x): the Radon transform of each channel, (B, C, angles, detectors).

    The angles part 180 degrees evenly. There is a detector for each pixel of the image's diagonal, so that all of it is
    seen; outside the image is zero (mid-grey). A line integral is divided by the image's longer side, which keeps it
    about [-1, 1]. The geometry is that of scikit-image's `radon` with ``circle=False``, the integrals are Joseph's.

    Args:
        angles: how many, from 1 to 720.
    """

    linear = True
    units = "divide the sums along rays, as scikit-image's radon has them, by the image's longer side"

    def __init__(self, angles: Annotated[int, whole(1, MAX_ANGLES)] = 25) -> None:
        super().__init__()
        self.angles = angles
        self._projector: Latest[Projector] = Latest()

    @property
    def theta(self) -> np.ndarray:
        """The angles in degrees."""
        return np.arange(self.angles) * 180 / self.angles

    def image_size(self, measured: Sequence[int], **state: Tensor) -> tuple[int, int]:
        """Return the size of the square image that a sinogram is of, as its detectors tell it."""
        return 2 * (math.floor(measured[-1] / 2**0.5),)

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        projector = self._project(x.shape[-2:], x)
        return linear_map(x, projector.apply, projector.adjoint)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        """Return A^T y, the back-projection; ``shape`` is the image's, by default square."""
        size = self.image_size(y.shape) if shape is None else shape[-2:]
        projector = self._project(size, y)
        return linear_map(y, projector.adjoint, projector.apply)

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return the filtered back-projection."""
        return filtered_back_projection(y * max(shape[-2:]), self.theta, shape[-2:])

    def picture(self, y: Tensor) -> Tensor:
        """Return the sinogram, its angles repeated until it is about square."""
        return y.repeat_interleave(max(round(y.shape[-1] / y.shape[-2]), 1), dim=-2)

    def _project(self, size: Sequence[int], like: Tensor) -> "Projector":
        return self._projector.get(
            (tuple(size), like.dtype, like.device),
            lambda: Projector((size[-2], size[-1]), self.theta, like.dtype, like.device),
        )


class Projector:
    """The line integrals of images (B, C, H, W), divided by the longer side, and their adjoint, as sparse matrices.

    Args:
        size: the images' (H, W).
        theta: angles in degrees.
        dtype: of the images to come; half types are computed in float32.
        device: of the images to come.
    """

    def __init__(self, size: tuple[int, int], theta: np.ndarray, dtype: torch.dtype, device: torch.device) -> None:
        self.size = size
        self.sinogram = (len(theta), detectors(size))
        self.dtype = torch.promote_types(dtype, torch.float32)
        matrix = joseph_matrix(size, theta) / max(size)
        self._forward, self._adjoint = (_to_torch(part.tocsr()).to(device, self.dtype) for part in (matrix, matrix.T))

    def apply(self, x: Tensor) -> Tensor:
        """Return the sinograms (B, C, angles, detectors) of images (B, C, H, W)."""
        return self._multiply(self._forward, x, self.sinogram)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the back-projections (B, C, H, W) of sinograms (B, C, angles, detectors)."""
        return self._multiply(self._adjoint, y, self.size)

    def _multiply(self, matrix: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
        product = matrix @ x.to(self.dtype).reshape(-1, matrix.shape[1]).T
        return product.T.reshape(*x.shape[:2], *size).to(x.dtype).contiguous()


def detectors(size: Sequence[int]) -> int:
    """Return how many detectors see all of an image (H, W): the diagonal of a square of its longer side, rounded up."""
    return math.ceil(2**0.5 * max(size))


def joseph_matrix(size: Sequence[int], theta: np.ndarray) -> Any:
    """Return the sparse matrix (angles * detectors, H * W) of line integrals over images of ``size``, in pixels.

    The ray at angle theta and signed distance s from the centre, pixel (H // 2, W // 2), is the line of
    ``(column, row) = s (cos, -sin) + t (sin, cos)``. It is followed pixel by pixel along the axis that it is closer to,
    and the image is interpolated linearly along the other (Joseph, IEEE Trans. Med. Imaging 1982).

    Args:
        size: (H, W).
        theta: angles in degrees.
    """
    from scipy.sparse import vstack  # slow to import

    return vstack([_joseph_angle(size, angle) for angle in np.deg2rad(theta)], format="csr")


def _joseph_angle(size: Sequence[int], angle: float) -> Any:
    """Return the rows of `joseph_matrix` of one angle, in radians."""
    from scipy.sparse import csr_matrix

    height, width = size
    cos, sin = np.cos(angle), np.sin(angle)
    by_rows = abs(cos) >= abs(sin)
    count, steps, breadth = detectors(size), *((height, width) if by_rows else (width, height))
    s = (np.arange(count) - count // 2)[:, None]
    along = np.arange(steps) - steps // 2
    # t where the ray crosses each row (column), and the column (row) it is at there.
    across = (s * cos + (along + s * sin) * sin / cos) if by_rows else (-s * sin + (along - s * cos) * cos / sin)
    across = across + breadth // 2
    before = np.floor(across).astype(int)
    rays, places, entries = [], [], []
    for pixel, weight in ((before, before + 1 - across), (before + 1, across - before)):
        ray, step = np.nonzero((pixel >= 0) & (pixel < breadth))
        other = pixel[ray, step]
        rays.append(ray)
        places.append(step * width + other if by_rows else other * width + step)
        entries.append(weight[ray, step] / max(abs(cos), abs(sin)))
    shape = (count, height * width)
    return csr_matrix((np.concatenate(entries), (np.concatenate(rays), np.concatenate(places))), shape=shape)


def _to_torch(matrix: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        starts, columns, values = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
        return torch.sparse_csr_tensor(starts, columns, values, size=matrix.shape, check_invariants=True)
