"""A measurement, with what its operator drew for it."""

from dataclasses import dataclass, field

from torch import Tensor

from ldm_inverse.noises import Noise


@dataclass(frozen=True)
class Measurement:
    """A measurement ``y = noise(A(x, **state))`` of images x (B, C, H, W) in [-1, 1].

    Attributes:
        y: the measurement, (B, ...).
        state: what the operator drew for it (a mask, a kernel, a code); empty where nothing is random.
        noise: of this measurement, where that is not the task's.
    """

    y: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)
    noise: Noise | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return y and the state by name, for a file."""
        return {"y": self.y, **self.state}
