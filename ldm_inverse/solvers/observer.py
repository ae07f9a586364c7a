"""The events of a restoration, and the protocol of its observers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from ldm.models.diffusion.evaluations import Evaluations

StageName = Literal["ddim", "soft", "pixel", "latent", "final", "langevin", "input", "refine"]
NONE = Evaluations()
Stop = Literal["", "threshold", "plateau", "limit", "not finite"]


@dataclass(frozen=True)
class State:
    """All that the rest of a restoration depends on, besides the measurement, the settings and the noise source.

    Attributes:
        done: steps that are done, those of earlier restarts included.
        latent: what they led to, (B, C, h, w).
        best: of the restarts that have ended, the images kept, (B, C, H, W); None in the first.
    """

    done: int
    latent: Tensor
    best: Tensor | None = None


@dataclass(frozen=True)
class Started:
    """A run of the sampler has begun: ``steps`` are to be done, from number ``step`` on."""

    step: int
    steps: int


@dataclass(frozen=True)
class Iterated:
    """An optimisation has taken an iteration.

    Attributes:
        stage: as of `StageEnded`.
        iteration: its number, from 0.
        limit: iterations at most.
        losses: mean squared residual of each image of the batch, from before the iteration.
        target: the loss that the first image's optimisation stops below; None where there is no such rule.
    """

    stage: StageName
    iteration: int
    limit: int
    losses: Sequence[float]
    target: float | None = None


@dataclass(frozen=True)
class StageEnded:
    """One part of a step has been done to one image.

    Attributes:
        step: position in the restoration, from 0; the number of steps for what comes after the last.
        timestep: the diffusion timestep of that step; 0 after the last.
        stage: a step without ("ddim") or with ("soft") the gradient of the measurement, hard consistency over
            "pixel" or "latent", the "final" latent stage, Langevin steps over the clean latent ("langevin"), an
            optimisation of the UNet's input ("input"), or the optimisation of the decoded image ("refine").
        sample: the image's position in the batch.
        losses: mean squared residual before each iteration; for "soft" that of the estimate, where the norm is the
            residual's own.
        norm: for "soft", the norm that the step descends.
        target: the loss that the optimisation stops below; None where it has no such rule.
        noise_floor: mean square of the noise, which the residual of the true image has; None where it is not known.
        stop: why the optimisation stopped; "" where there was none.
        seconds: since the event before, shared out over the batch.
        evaluations: of the networks for this image since the event before. What an observer decodes is not among them.
    """

    step: int
    timestep: int
    stage: StageName
    sample: int = 0
    losses: Sequence[float] = ()
    norm: float | None = None
    target: float | None = None
    noise_floor: float | None = None
    stop: Stop = ""
    seconds: float = 0.0
    evaluations: Evaluations = NONE

    @property
    def iterations(self) -> int:
        """Optimiser iterations."""
        return 0 if self.stage in ("ddim", "soft") else len(self.losses)

    @property
    def first_loss(self) -> float | None:
        """The first of ``losses``; for "soft", the norm."""
        return self.norm if self.stage == "soft" else self.losses[0] if self.losses else None

    @property
    def last_loss(self) -> float | None:
        """The last of ``losses``; for "soft", the norm."""
        return self.norm if self.stage == "soft" else self.losses[-1] if self.losses else None


@dataclass(frozen=True)
class StepEnded:
    """A step of all images has ended.

    Attributes:
        step: as of `StageEnded`.
        estimate: of the clean latents, (B, C, h, w).
        state: a later call of `restore` continues from it, with the noise source as it is now.
    """

    step: int
    estimate: Tensor
    state: State


@dataclass(frozen=True)
class Lost:
    """The loss, latent or pixels of an image are not finite: its result has no meaning. No more is told of it.

    Attributes:
        sample: its position in the batch.
        step: as of `StageEnded`.
        reason: what is not finite, in a line.
    """

    sample: int
    step: int
    reason: str


@dataclass(frozen=True)
class Finished:
    """A run of the sampler has ended, by an exception or because its images are there."""


Event = Started | Iterated | StageEnded | StepEnded | Lost | Finished


class Observer(Protocol):
    """Receives the events of a restoration one by one. Any function of one argument is an observer."""

    def __call__(self, event: Event, /) -> None:
        """Take note of an event."""
