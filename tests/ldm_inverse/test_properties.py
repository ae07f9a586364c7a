"""Each property of operators refuses an operator that lacks it, and says what is wrong."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_inverse.operators import Operator
from ldm_inverse.operators.identity import Identity
from ldm_inverse.properties import PROPERTIES, PropertyError
from util.errors import UserError


class Operators:
    """Operators with one defect each, under the name of the property that they lack."""

    class SizesOfBatch(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return (x**2).sum()

    class SizesFinite(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x.log()

    class SizesTold(Identity):
        def check_size(self, height: int, width: int) -> None:
            if height != width:
                raise UserError("no")

    class SizesNone(Identity):
        def check_size(self, height: int, width: int) -> None:
            raise UserError(f"{height} x {width}")

    class LinearSaid(Operator):
        linear = True

        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x + 1e-6 * x**2

    class LinearNotSaid(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return 2 * x

    class AdjointWrong(Operator):
        linear = True

        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x.roll(1, -1)

        def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
            return y.roll(1, -1)

    class AdjointOfNonlinear(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x**3

        def transpose(self, y: Tensor, shape: Sequence[int] | None = None, **state: Tensor) -> Tensor:
            return y

    class GradientDetached(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x.detach() ** 2

    class GradientWrong(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x * x.detach()

    class GradientZero(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x.round()

    class SizesOfNothing(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> None:  # type: ignore[override]
            return None

    class AloneParameter(Operator):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return self.gain * x**2

    class DtypeSingle(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x.float() ** 2

    class DeviceLoose(Operator):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.ones(())

        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return self.gain * x**2

    class BatchMixed(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x**2 - x.mean()

    class DrawsAtOnce(Operator):
        def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
            return {"gain": torch.from_numpy(rng.uniform(size=(2, shape[0], 1, 1, 1)).sum(0))}

        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x * state["gain"].to(x)

    class DeterminismLost(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    class DeterminismGlobal(Identity):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            np.random.uniform()
            return x

    class LayoutInPlace(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x.mul_(0.5) if not x.requires_grad else x * 0.5

    class LayoutStrides(Identity):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x if x.is_contiguous() else -x

    class StateKept(Operator):
        def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
            self.gain = float(rng.uniform())
            return {}

        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x * getattr(self, "gain", 1.0)

    class BaselineOfMeasurement(Operator):
        def forward(self, x: Tensor, **state: Tensor) -> Tensor:
            return x[..., ::2, ::2] ** 3

        def baseline(self, y: Tensor, shape: Sequence[int], sigma: float | None, **state: Tensor) -> Tensor:
            return y


DEFECTS = [
    ("sizes", Operators.SizesOfBatch, "give a measurement of ()"),
    ("gradient", Operators.GradientZero, "the gradient is zero everywhere"),
    ("sizes", Operators.SizesOfNothing, "forward returns NoneType, not a tensor"),
    ("sizes", Operators.SizesFinite, "NaN or infinity"),
    ("sizes", Operators.SizesTold, "2 x 300"),
    ("sizes", Operators.SizesNone, "refuses every size"),
    ("linear", Operators.LinearSaid, "linear = True"),
    ("linear", Operators.LinearNotSaid, "linear = False"),
    ("adjoint", Operators.AdjointWrong, "correct transpose"),
    ("adjoint", Operators.AdjointOfNonlinear, "only a linear operator"),
    ("gradient", Operators.GradientDetached, "no gradient reaches the image"),
    ("gradient", Operators.GradientWrong, "finite differences"),
    ("gradient_reaches_the_image_alone", Operators.AloneParameter, "gain: make them buffers"),
    ("dtype", Operators.DtypeSingle, "torch.float32"),
    ("device", Operators.DeviceLoose, "register_buffer"),
    ("batch", Operators.BatchMixed, "batch of 3"),
    ("draws_one_after_the_other", Operators.DrawsAtOnce, "gain of image 0"),
    ("determinism", Operators.DeterminismLost, "belongs in draw"),
    ("determinism", Operators.DeterminismGlobal, "global random stream"),
    ("memory_layout", Operators.LayoutInPlace, "changes the image"),
    ("memory_layout", Operators.LayoutStrides, "channels-last"),
    ("state_given_back", Operators.StateKept, "another measurement"),
    ("baseline", Operators.BaselineOfMeasurement, "the baseline of images"),
]


@pytest.mark.parametrize(("name", "operator", "told"), DEFECTS, ids=[defect[1].__name__ for defect in DEFECTS])
def test_a_defect_is_told(name, operator, told):
    with pytest.raises(PropertyError) as caught:
        PROPERTIES[name](operator)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_property_is_violated_by_something():
    assert {name for name, _, _ in DEFECTS} == set(PROPERTIES)
