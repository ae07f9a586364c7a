"""What every measurement operator is: a module from an image to a measurement, with its random state outside."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from util.registry import Registry

OPERATORS = Registry("operator")


class Operator(nn.Module):
    """A measurement operator A, y = A(x).

    Images are (B, 3, H, W) in [-1, 1]; the measurement has the image's dtype and device, and values follow the
    operator. Nothing is random in `forward`: what is random (a kernel, a mask, a code) comes from `draw` and is passed
    back in as keywords, so that it can be saved beside the measurement and given again. State tensors have a leading
    dimension of B, or of 1 for a state that all images share.

    Attributes:
        linear: whether A is linear; then `transpose` is its adjoint.
    """

    linear: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()  # without nn.Module's **kwargs: an operator that takes no settings refuses them by name

    def check_draw(self) -> None:
        """Check that `draw` can draw something; by default it can.

        Raises:
            UserError: it cannot, and a state has to be given.
        """

    def check_size(self, height: int, width: int) -> None:
        """Check that the operator can take images of this size.

        Raises:
            UserError: it cannot; the message says which sizes it can.
        """

    def check_image(self, name: str, height: int, width: int) -> None:
        """Check that the operator can take the image of a name; by default any of a size that it can take.

        Raises:
            UserError: it cannot.
        """
        self.check_size(height, width)

    def image_size(self, measured: Sequence[int]) -> tuple[int, int]:
        """Return the (height, width) of images whose measurements have the shape ``measured``, (1, ...), or the largest
        such; by default its last two sides.
        """
        return measured[-2], measured[-1]

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        """Draw the operator's random state for images of ``shape`` (B, 3, H, W), one image after the other.

        Returns:
            the keywords for `forward`; empty when nothing is random.
        """
        return {}

    def draw_for(self, name: str, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        """Draw the random state for the image of a name, (1, 3, H, W): as `draw`, unless there is state for names."""
        return self.draw(shape, rng)

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        """Return A(x)."""
        raise NotImplementedError

    def smooth(self, x: Tensor, **state: Tensor) -> Tensor:
        """Return the function whose gradient `forward` has: A(x) itself, unless A is a step function (see `jpeg`)."""
        return self.forward(x, **state)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        """Return A^T y, the adjoint: ``(A(x) * y).sum() == (x * A^T(y)).sum()`` for every x and y.

        Args:
            y: what has the measurement's shape.
            shape: the image's (B, 3, H, W), needed only where the measurement's shape does not tell it (see
                `super_resolution`).

        Raises:
            NotImplementedError: the operator is not linear.
        """
        raise NotImplementedError(f"{type(self).__name__} is not linear")

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return what a person would make of the measurement without a model: here, the measurement itself.

        Args:
            y: the measurement.
            shape: the image's (B, 3, H, W).
            sigma: standard deviation of the measurement noise, or None where it is not known.

        Returns:
            an image of ``shape``, not clipped; uniform grey (zeros) where the measurement is not a picture of that
            size, because then there is nothing to show.
        """
        return y if tuple(y.shape) == tuple(shape) else y.new_zeros(tuple(shape))

    def equivalents(self, x: Tensor) -> list[Tensor]:
        """Return images that all have the measurement of x, and are far from each other: x, and here no others.

        Restarts (`conditioning.restarts`) begin from one after the other: a measurement does not tell them apart, and a
        prior may.
        """
        return [x]

    def picture(self, y: Tensor) -> Tensor:
        """Return a measurement as a picture to look at, (B, 1 or 3, h, w), black at -1, white at 1: here, y itself."""
        return y


class _LinearMap(torch.autograd.Function):
    """y = A x with the adjoint written out: autograd through A would cost more, and its own transpose is at hand."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
        return apply(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.map, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _LinearMap.apply(grad, ctx.adjoint, ctx.map), None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_: None) -> Tensor:
        return _LinearMap.apply(tangent, ctx.map, ctx.adjoint)


def linear_map(x: Tensor, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``apply(x)``, whose gradient is ``adjoint`` and whose forward derivative is ``apply``.

    Args:
        x: any tensor.
        apply: a linear function; autograd does not look inside.
        adjoint: its adjoint, likewise.
    """
    return _LinearMap.apply(x, apply, adjoint)
