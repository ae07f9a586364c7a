"""Everything one can tune in ReSample; the defaults are the reference.

`configs/presets/reference.yaml` says what each setting does. No torch here: the command checks settings before anything
heavy is imported.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ldm_inverse.solvers.cost import Cost
from ldm_inverse.solvers.settings import NOISELESS_EPS, SamplerSettings
from util.errors import UserError
from util.settings import Count, Flag, NotNegative, Positive, Settings, Share, Whole

NOISE_FLOOR = "noise"
Eps = Literal["noise"] | Positive
Stage = Literal["pixel", "latent"]


class StageShares(Settings):
    """Which part of a run is which: first ``plain``, last ``latent``, pixel in between."""

    plain: Share = Fraction(1, 3)
    latent: Share = Fraction(1, 3)

    @model_validator(mode="after")
    def _within_the_run(self) -> "StageShares":
        if self.plain + self.latent > 1:
            raise ValueError("plain and latent together at most 1")
        return self


class FitSettings(Settings):
    """An optimisation by AdamW, and when it stops (`StopRule`)."""

    lr: Positive = 1e-2
    weight_decay: NotNegative = 1e-2
    max_iters: Count = 2000
    eps: Eps = NOISELESS_EPS
    window: Count | None = None

    def threshold(self, noise_sigma: float | None) -> float:
        """The mean squared residual to stop below: eps^2; for ``noise``, that of the true image (the discrepancy
        principle of Morozov).

        Args:
            noise_sigma: root mean square of the measurement's noise; None when it is not known.

        Raises:
            UserError: the noise is asked for and not known.
        """
        if not isinstance(self.eps, str):
            return self.eps**2
        if noise_sigma is None:
            raise UserError("eps is 'noise', but the level of this measurement's noise is not known: give eps a number")
        return max(noise_sigma, NOISELESS_EPS) ** 2


class PixelSettings(FitSettings):
    """The optimisation over an image.

    Attributes:
        method: "adamw", or "exact": `proximal`, which reads ``max_iters`` and what follows here.
        deviation: of true images from decoded ones, in units of [-1, 1]; "auto": estimated from the residual, for each
            image and step (`ldm_inverse.solvers.proximal.estimated_deviation`).
        correlation: over how many pixels their differences are correlated; 0: pixels are independent.
        border_deviation: of the errors that are added towards the border, where the image extends beyond its
            measurement.
        border_correlation: over how many pixels these are correlated.
        draws: the share of the noise levels, the highest first, at which the image is a draw from its posterior, rather
            than the most probable one; "auto" deviations are then bounded (`ldm_inverse.solvers.resample.most_drawn`).
        corrections: of the latent that the encoder makes of the image (`encoded`).
    """

    method: Literal["adamw", "exact"] = "adamw"
    deviation: Literal["auto"] | Positive = 0.1
    correlation: NotNegative = 0.0
    border_deviation: Positive = 0.15
    border_correlation: Positive = 3.0
    draws: Share = Fraction(0)
    corrections: Whole = 0


class LatentSettings(FitSettings):
    """The optimisation over a latent, through the decoder."""

    lr: Positive = 5e-3
    max_iters: Count = 500
    window: Count | None = 200
    quantise: Flag = True
    anchor: Positive | None = None
    decoder_error: NotNegative = 0.0


class ResampleSettings(SamplerSettings):
    """How ReSample restores (Song et al., ICLR 2024): `conditioning.resample` of a task or preset."""

    start: Share = Fraction(1)
    interval: Count = 10
    stages: StageShares = Field(default_factory=StageShares)
    travel_length: Count = 5
    gamma: Positive = 40.0
    soft_step: Flag = True
    soft_scale: NotNegative = 0.5
    tweedie: Literal["reference", "exact"] = "reference"
    travel_index: Literal["reference", "exact"] = "reference"
    resample_variance: Literal["reference", "paper"] = "reference"
    pixel: PixelSettings = Field(default_factory=PixelSettings)
    latent: LatentSettings = Field(default_factory=LatentSettings)
    final: Flag | LatentSettings = True

    @model_validator(mode="before")
    @classmethod
    def _final_as_latent(cls, values: Any) -> Any:
        """A mapping ``final`` takes from ``latent`` whatever it leaves out."""
        if not isinstance(values, Mapping) or not isinstance(values.get("final"), Mapping):
            return values
        try:
            latent = LatentSettings.model_validate(values.get("latent") or {})
        except ValidationError:  # it is told for `latent` itself
            return values
        return {**values, "final": {**latent.model_dump(), **values["final"]}}

    @property
    def final_stage(self) -> LatentSettings | None:
        """Settings of the latent stage after the last step; None where there is none."""
        if isinstance(self.final, LatentSettings):
            return self.final
        return self.latent if self.final else None

    @property
    def starts_from_guess(self) -> bool:
        return self.start < 1

    @property
    def decodes_quantised(self) -> bool:
        """As the last optimisation saw the result."""
        return (self.final_stage or self.latent).quantise

    def check_noise_level(self, noise_sigma: float | None) -> None:
        """Check that a measurement with noise of this level can be restored, before any work is done.

        Raises:
            UserError: as `SamplerSettings.check_noise_level` and `FitSettings.threshold`, and where the pixel stage is
                exact.
        """
        super().check_noise_level(noise_sigma)
        if self.pixel.method == "exact" and noise_sigma is None:
            raise UserError(
                "the level of this measurement's noise is not known, and pixel.method: exact needs it: set it to adamw"
            )
        for stage in (self.pixel, self.latent, self.final_stage or self.latent):
            stage.threshold(noise_sigma)

    def first_index(self, steps: int) -> int:
        """The index that a run of ``steps`` steps starts from: its first ``1 - start`` are left out."""
        return max(int(self.start * steps), 1) - 1

    def stage_at(self, index: int, steps: int) -> Stage | None:
        """The hard consistency, "pixel" or "latent", after step ``index`` (0 is the last) of ``steps``; None: none."""
        if index == 0 or index % self.interval or index > steps - int(self.stages.plain * steps):
            return None
        return "latent" if index < int(self.stages.latent * steps) else "pixel"

    def draws_at(self, index: int, steps: int) -> bool:
        """Whether a fit over the image after step ``index`` (0 is the last) of ``steps`` is a draw."""
        return index >= (1 - self.pixel.draws) * steps

    def last_event(self, steps: int) -> int:
        """The index of the last hard consistency among ``steps`` steps; 0 where there is none."""
        return next((index for index in range(self.first_index(steps) + 1) if self.stage_at(index, steps)), 0)

    def cost(self, steps: int) -> Cost:
        """Return the most passes that a run of ``steps`` steps takes."""
        run = self.first_index(steps) + 1
        stages = {index: self.stage_at(index, steps) for index in range(run)}
        travel = sum(min(self.travel_length, index) for index, stage in stages.items() if stage)
        pixel, latent = (list(stages.values()).count(stage) for stage in ("pixel", "latent"))
        final = self.final_stage.max_iters if self.final_stage else 0
        return Cost(
            unet=run + travel,
            decoder=(run if self.soft_step else 0) + latent * self.latent.max_iters + final,
            decoder_forward=pixel * (1 + self.pixel.corrections),
            pixel=pixel * self.pixel.max_iters,
            # After each optimisation over an image, with its corrections, and of the first guess.
            encoder=pixel * (1 + self.pixel.corrections) + (run < steps),
        )
