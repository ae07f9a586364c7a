"""The base of all measurement operators: a module from an image to a measurement, with its random state outside."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from data.sources import Origin
from ldm_inverse.baselines import wiener
from util.errors import UserError
from util.registry import Registry

OPERATORS = Registry("operator")

T = TypeVar("T")


class Operator(nn.Module):
    """A measurement operator A, y = A(x).

    Images are (B, C, H, W) in [-1, 1]; the measurement has the image's dtype and device, and values follow the
    operator. Nothing is random in `forward`: what is random (a kernel, a mask, a code) comes from `draw` and is passed
    back in as keywords, so that it can be saved beside the measurement and given again. State tensors have a leading
    dimension of B, or of 1 for a state that all images share.

    Attributes:
        linear: whether A is linear; then `transpose` is its adjoint.
        state_names: the names of what `draw` may return and `forward` reads.
        colour_only: whether images have to have three channels.
        keeps_units: whether measurements are in the units of pictures, or linear in them, so that they can be brought
            from other units to [-1, 1].
        unknown_border: whether the image reaches beyond what is measured (see `inside`).
        units: how to bring a measurement of your own to this operator's units, where that is not obvious.
    """

    linear: ClassVar[bool] = False
    state_names: ClassVar[tuple[str, ...]] = ()
    keeps_units: ClassVar[bool] = True
    unknown_border: bool = False
    units: ClassVar[str] = ""
    colour_only: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()  # without nn.Module's **kwargs: an operator that takes no settings refuses them by name

    def input_files(self) -> Sequence[Path]:
        """Return files that the operator was made of, other than those that its settings name; here, none.

        When one of them is replaced, what a run has restored by it is restored again.
        """
        return ()

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

    def check_image(self, origin: Origin, height: int, width: int) -> None:
        """Check that the operator can take the image read from a picture; by default any of a size that it can take.

        Raises:
            UserError: it cannot.
        """
        self.check_size(height, width)

    def image_size(self, measured: Sequence[int], **state: Tensor) -> tuple[int, int]:
        """Return the (height, width) of images whose measurements, by this state where it is known, have the shape
        ``measured``, (1, ...), or the largest such; by default its last two sides.
        """
        return measured[-2], measured[-1]

    def inside(self, x: Tensor, **state: Tensor) -> Tensor:
        """Return the part of an image (B, C, H, W) that a measurement by this state shows; by default, all of it."""
        return x

    def unmeasured(self, shape: Sequence[int], **state: Tensor) -> Tensor | None:
        """Return the unmeasured share of each pixel of images of ``shape`` (B, C, H, W), from 0 to 1, as (B or 1, 1, H,
        W), where an image extends beyond its measurement; here None.
        """
        return None

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        """Draw the operator's random state for images of ``shape`` (B, C, H, W), one image after the other.

        Returns:
            the keywords for `forward`; empty when nothing is random.
        """
        return {}

    def draw_for(self, origin: Origin, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        """Draw the random state for the image (1, C, H, W) read from a picture: as `draw`, unless it has its own."""
        return self.draw(shape, rng)

    def brought(self, origin: Origin, shape: Sequence[int]) -> dict[str, Tensor]:
        """Return the state that a measured picture contains itself, for an image of ``shape``; here, none."""
        return {}

    def given_state(self, state: Mapping[str, Tensor], shape: Sequence[int]) -> dict[str, Tensor]:
        """Return state that a person gives with a measurement of an image of ``shape``, in the form of `draw`'s.

        Raises:
            UserError: it cannot be the state of this operator.
        """
        return dict(state)

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        """Return A(x).

        Raises:
            TypeError: state that A needs is missing.
        """
        raise NotImplementedError

    def smooth(self, x: Tensor, **state: Tensor) -> Tensor:
        """Return the function whose gradient `forward` has: A(x) itself, unless A is a step function (see `jpeg`)."""
        return self.forward(x, **state)

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        """Return A^T y, the adjoint: ``(A(x) * y).sum() == (x * A^T(y)).sum()`` for every x and y.

        Args:
            y: what has the measurement's shape.
            shape: the image's (B, C, H, W), needed only where the measurement's shape does not tell it (see
                `super_resolution`).

        Raises:
            NotImplementedError: the operator is not linear.
        """
        raise NotImplementedError(f"{type(self).__name__} is not linear")

    def proximal(self, y: Tensor, x0: Tensor, weight: float, **state: Tensor) -> Tensor | None:
        """Return the image that minimises ``||y - A(x)||^2 + weight ||x - x0||^2``, where there is a closed form; where
        there is none, as here, None.

        Args:
            y: the measurement.
            x0: images (B, C, H, W).
            weight: above 0.
        """
        return None

    def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
        """Return the restoration without a model: here, the measurement if it is a picture.

        Args:
            y: the measurement.
            shape: the image's (B, C, H, W).
            sigma: standard deviation of the measurement noise, or None where it is not known.

        Returns:
            an image of ``shape``, not clipped. If the measurement has another shape, it is the Wiener estimate for a
            linear operator, and uniform grey (zeros) for any other operator.
        """
        if tuple(y.shape) == tuple(shape):
            return y
        if not self.linear:
            return y.new_zeros(tuple(shape))
        one = (1, *shape[1:])

        def estimate(y: Tensor, own: dict[str, Tensor]) -> Tensor:
            apply, adjoint = partial(self.forward, **own), partial(self.transpose, shape=one, **own)
            return wiener(apply, adjoint, y, sigma or 0.0, shape[-2:], keeps_constants=False, channels=shape[1])

        return torch.cat([estimate(y[i : i + 1], of_image(state, i)) for i in range(len(y))])

    def equivalents(self, x: Tensor) -> list[Tensor]:
        """Return images with the same measurement as x that are far from each other: x first, and here no others.

        Restarts (`conditioning.restarts`) begin from one after the other: the measurement cannot tell them apart, but
        the prior may.
        """
        return [x]

    def picture(self, y: Tensor) -> Tensor:
        """Return a measurement as a picture to look at, (B, 1 or 3, h, w), black at -1, white at 1: here, y itself."""
        return y


def build_operator(name: str, settings: Mapping[str, Any], where: str) -> Operator:
    """Build the operator filed under ``name``, with no parameter that asks for a gradient.

    Args:
        name: as registered.
        settings: its keywords.
        where: their dotted path, for error messages.

    Raises:
        UserError: no such name, a keyword that is unknown, missing or out of range, or what is registered is none.
    """
    operator = OPERATORS.make(name, settings, where)
    if not isinstance(operator, Operator):
        raise UserError(
            f"operator {name!r} is not an ldm_inverse.measurements.Operator: its code returned {_kind(operator)}"
        )
    return operator.eval().requires_grad_(False)


def measured(operator: Operator, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Return A(x).

    Raises:
        UserError: the operator's code returns no tensor, or one that cannot be a measurement of x.
    """
    y, what = operator(x, **state), f"operator {type(operator).__name__}: forward returned"
    if not torch.is_tensor(y):
        raise UserError(f"{what} {_kind(y)}, not a tensor")
    if not y.is_floating_point():
        raise UserError(f"{what} {y.dtype} numbers for images in {x.dtype}")
    if y.ndim < 2 or len(y) != len(x):
        raise UserError(
            f"{what} shape {tuple(y.shape)} for images of {tuple(x.shape)}: the first dimension must be the batch"
        )
    if x.requires_grad and not y.requires_grad:
        raise UserError(f"{what} a tensor without a gradient to the image: something is detached, or under no_grad")
    return y


def drawn(state: Any, operator: Operator) -> dict[str, Tensor]:
    """Return what an operator has drawn.

    Raises:
        UserError: it is no mapping of tensors.
    """
    if not isinstance(state, Mapping) or not all(torch.is_tensor(value) for value in state.values()):
        name, what = type(operator).__name__, "other things" if isinstance(state, Mapping) else _kind(state)
        raise UserError(f"operator {name}: draw returned {what}, not a dictionary of tensors")
    return dict(state)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def needed(state: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the part of an operator's state that has this name.

    Raises:
        TypeError: it is missing.
    """
    if name not in state:
        raise TypeError(f"no {name}: pass the state that draw() returned")
    return state[name]


def of_image(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the state, with a leading dimension of 1, of one image of a batch."""
    return {key: value[index : index + 1] if len(value) > 1 else value for key, value in state.items()}


class Latest(Generic[T]):
    """Keeps the last map that was made, because an optimisation asks for the same one thousands of times."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._map: T | None = None

    def get(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Return what ``make`` returned for this key, or let it make one; a tensor in a key is compared by identity."""
        if self._map is None or self._key is None or not _same(key, self._key):
            with torch.no_grad():
                self._key, self._map = key, make()
        return self._map


def _same(key: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(a is b if torch.is_tensor(a) or torch.is_tensor(b) else a == b for a, b in zip(key, other, strict=True))


class _LinearMap(torch.autograd.Function):
    """y = A x with a given adjoint, which costs less than autograd through A."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.map, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _LinearMap.apply(grad, ctx.adjoint, ctx.map), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _LinearMap.apply(tangent, ctx.map, ctx.adjoint)


def linear_map(x: Tensor, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``apply(x)``, whose gradient is ``adjoint`` and whose forward derivative is ``apply``.

    Args:
        x: any tensor.
        apply: a linear function; autograd does not look inside.
        adjoint: its adjoint, likewise.
    """
    return _LinearMap.apply(x, apply, adjoint)
