"""Everything one can tune in ReSample, as frozen dataclasses that check themselves; the defaults are the reference.

`configs/presets/reference.yaml` says what each setting does. No torch here: the command checks settings before anything
heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any

from ldm.models.diffusion.checked_settings import (
    CheckedSettings,
    Count,
    Flag,
    NotNegative,
    Positive,
    Share,
    one_of,
    optional,
)
from ldm.models.diffusion.posterior_settings import NOISELESS_EPS, PosteriorSettings
from util.errors import UserError

NOISE_FLOOR = "noise"


def _eps(value: Any) -> float | str:
    try:
        return value if value == NOISE_FLOOR else Positive.__metadata__[0](value)
    except ValueError as error:
        raise ValueError(f"{error}, or {NOISE_FLOOR!r}") from None


Window = Annotated[int | None, optional(Count)]
Anchor = Annotated[float | None, optional(Positive)]
Eps = Annotated[float | str, _eps]


@dataclass(frozen=True)
class StageShares(CheckedSettings):
    """Which part of a run is which: first ``plain``, last ``latent``, pixel in between."""

    plain: Share = Fraction(1, 3)
    latent: Share = Fraction(1, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plain + self.latent > 1:
            raise UserError(f"plain is {self.plain} and latent {self.latent}: together at most 1")


@dataclass(frozen=True)
class PixelSettings(CheckedSettings):
    """The optimisation over an image: AdamW, and when it stops (`StopRule`)."""

    lr: Positive = 1e-2
    weight_decay: NotNegative = 1e-2
    max_iters: Count = 2000
    eps: Eps = NOISELESS_EPS
    window: Window = None

    def threshold(self, noise_sigma: float | None) -> float:
        """The mean squared residual to stop below: eps^2; for ``noise``, that of the true image (the discrepancy
        principle of Morozov).

        Args:
            noise_sigma: root mean square of the measurement's noise; None when it is not known.

        Raises:
            UserError: the noise is asked for and not known.
        """
        if self.eps != NOISE_FLOOR:
            return self.eps**2
        if noise_sigma is None:
            raise UserError("eps is 'noise', but the level of this measurement's noise is not known: give eps a number")
        return max(noise_sigma, NOISELESS_EPS) ** 2


@dataclass(frozen=True)
class LatentSettings(PixelSettings):
    """The optimisation over a latent, through the decoder."""

    lr: Positive = 5e-3
    max_iters: Count = 500
    window: Window = 200
    quantise: Flag = True
    anchor: Anchor = None
    decoder_error: NotNegative = 0.0


def _final(value: Any) -> bool | LatentSettings:
    if not isinstance(value, bool | LatentSettings):
        raise ValueError("must be true, false or a mapping of settings")
    return value


@dataclass(frozen=True)
class ResampleSettings(PosteriorSettings):
    """How ReSample restores (Song et al., ICLR 2024): `conditioning.resample` of a task or preset."""

    start: Share = Fraction(1)
    interval: Count = 10
    stages: StageShares = field(default_factory=StageShares)
    travel_length: Count = 5
    gamma: Positive = 40.0
    soft_step: Flag = True
    soft_scale: NotNegative = 0.5
    tweedie: Annotated[str, one_of("reference", "exact")] = "reference"
    travel_index: Annotated[str, one_of("reference", "exact")] = "reference"
    resample_variance: Annotated[str, one_of("reference", "paper")] = "reference"
    pixel: PixelSettings = field(default_factory=PixelSettings)
    latent: LatentSettings = field(default_factory=LatentSettings)
    final: Annotated[bool | LatentSettings, _final] = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, where: str = "conditioning.resample") -> "ResampleSettings":
        """As `CheckedSettings.from_config`; what a mapping ``final`` leaves out is as in ``latent``."""
        if isinstance(config, Mapping) and isinstance(config.get("final"), Mapping):
            # The latent group on its own first: its mistakes are then told under its own name.
            LatentSettings.from_config(config.get("latent"), f"{where}.latent")
            merged = {**(config.get("latent") or {}), **config["final"]}
            config = {**config, "final": LatentSettings.from_config(merged, f"{where}.final")}
        return super().from_config(config, where)

    @property
    def final_stage(self) -> LatentSettings | None:
        """Settings of the latent stage after the last step; None where there is none."""
        if isinstance(self.final, LatentSettings):
            return self.final
        return self.latent if self.final else None

    @property
    def quantise(self) -> bool:
        """Whether the result is decoded through the codebook: as the last optimisation saw it."""
        return (self.final_stage or self.latent).quantise

    def check_noise_level(self, noise_sigma: float | None) -> None:
        """Check that a measurement with noise of this level can be restored, before any work is done.

        Raises:
            UserError: as `PosteriorSettings.check_noise_level` and `PixelSettings.threshold`.
        """
        super().check_noise_level(noise_sigma)
        for stage in (self.pixel, self.latent, self.final_stage or self.latent):
            stage.threshold(noise_sigma)

    def first_index(self, steps: int) -> int:
        """The index that a run of ``steps`` steps starts from: its first ``1 - start`` are left out."""
        return max(int(self.start * steps), 1) - 1

    def stage_at(self, index: int, steps: int) -> str | None:
        """The hard consistency, "pixel" or "latent", after step ``index`` (0 is the last) of ``steps``; None: none."""
        if index == 0 or index % self.interval or index > steps - int(self.stages.plain * steps):
            return None
        return "latent" if index < int(self.stages.latent * steps) else "pixel"

    def last_event(self, steps: int) -> int:
        """The index of the last hard consistency among ``steps`` steps; 0 where there is none."""
        return next((index for index in range(self.first_index(steps) + 1) if self.stage_at(index, steps)), 0)
