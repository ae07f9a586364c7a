"""Linear operators of the deepinv library, where it is installed."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm_inverse.operators.base import OPERATORS, Operator
from ldm_inverse.operators.kernels import as_state, given_kernel
from util.errors import UserError
from util.logging import SayOnce
from util.settings import Text, Whole

MISSING = "deepinv is not installed: pip install deepinv"


class PhysicsOperator(Operator):
    """A(x) of a `deepinv.physics.LinearPhysics`, without its noise.

    deepinv's images are in [0, 1], ours in [-1, 1]. A is linear, so that it is the same for both, and a measurement of
    deepinv's images is brought to ours by ``2 y - A(1)`` (as ``measurement.range=[0, 1]`` does).

    Args:
        physics: the operator.
        img_size: of its images, (C, H, W); None is what the operator says itself, or any.
    """

    linear = True

    def __init__(self, physics: nn.Module, img_size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.physics: Any = physics  # deepinv has no types
        named = (getattr(physics, name, None) for name in ("img_size", "imsize"))
        size = img_size or next((found for found in named if found is not None), None)
        self._size = None if size is None else (int(size[-2]), int(size[-1]))

    def check_size(self, height: int, width: int) -> None:
        name = type(self.physics).__name__
        if self._size not in (None, (height, width)):
            told = "{} x {}".format(*self._size or ())
            raise UserError(f"deepinv's {name} is for images of {told} (img_size), not {height} x {width}")
        if self._size is None:
            self._probe(name, height, width)

    def _probe(self, name: str, height: int, width: int) -> None:
        try:
            with torch.no_grad():
                parts = [*self.physics.buffers(), torch.zeros(())]
                self.physics.A(torch.zeros(1, 3, height, width, dtype=parts[0].dtype, device=parts[0].device))
        except Exception as error:  # its own code, which may raise anything
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"deepinv's {name} does not take images of {height} x {width}: {reason}") from error

    def image_size(self, measured: Sequence[int], **state: Tensor) -> tuple[int, int]:
        return (measured[-2], measured[-1]) if self._size is None else self._size

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        found: Tensor = self.physics.A(x)
        return found

    def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
        found: Tensor = self.physics.A_adjoint(y)
        return found


@OPERATORS.register("deepinv")
def deepinv_operator(
    physics: Text, seed: Whole = 0, filter_is: Literal["psf", "correlation"] = "psf", **options: Any
) -> PhysicsOperator:
    """Build a linear operator of deepinv by its name.

    Args:
        physics: the name of a subclass of `deepinv.physics.LinearPhysics`.
        seed: of its generator, where it draws anything.
        filter_is: deepinv convolves: a ``filter`` that is a file holds a point spread function, or is turned to one.
        options: its keywords. A list is handed over as a tuple; a ``filter`` may be a file, as `motion_blur`'s kernel.

    Raises:
        UserError: deepinv is not installed, there is no such operator, or it cannot be built so.
    """
    try:
        import deepinv  # an extra, and slow to import
    except ImportError as error:
        raise UserError(MISSING) from error
    kind: Any = getattr(deepinv.physics, physics, None)
    if not (inspect.isclass(kind) and issubclass(kind, deepinv.physics.LinearPhysics)):
        raise UserError(f"physics: expected the name of a linear operator of deepinv.physics, got {physics!r}")
    keywords = {key: _value(key, value, filter_is == "correlation") for key, value in options.items()}
    if "rng" in inspect.signature(kind).parameters:
        keywords["rng"] = torch.Generator().manual_seed(seed)
    try:
        built: Any = kind(**keywords)
    except Exception as error:  # its own code, which may raise anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"deepinv's {physics} cannot be built with {_told(options)}: {reason}") from error
    return PhysicsOperator(built, keywords.get("img_size"))


def _value(key: str, value: Any, turned: bool) -> Any:
    if key == "filter" and isinstance(value, str) and Path(value.partition("#")[0]).is_file():
        return as_state([given_kernel(value, turned, SayOnce())])
    return tuple(value) if isinstance(value, list) else value


def _told(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())[:200] or "no settings"
