"""What the settings of every posterior sampler have in common. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from ldm.models.diffusion.checked_settings import CheckedSettings, Count, Positive
from util.errors import UserError

# A measurement without noise has a floor of 0, which no optimisation reaches: the reference's eps then.
NOISELESS_EPS = 1e-3


@dataclass(frozen=True)
class RefineSettings(CheckedSettings):
    """The last optimisation, over the decoded image (`refine`)."""

    deviation: Positive = 0.03
    correlation: Positive = 0.6
    max_iters: Count = 20


def _refine(value: Any) -> RefineSettings | None:
    if not isinstance(value, RefineSettings | None):
        raise ValueError("must be null or a mapping of settings")
    return value


@dataclass(frozen=True)
class PosteriorSettings(CheckedSettings):
    """How a posterior sampler restores: `conditioning.<its name>` of a task or preset.

    Attributes:
        refine: what is done to the decoded image; None: nothing.
        quantise: whether the result is decoded through the codebook, where the model has one.
        start: share of the run that is done, from its end; below 1 it starts from a first guess.
    """

    refine: Annotated[RefineSettings | None, _refine] = None
    quantise = True
    start = Fraction(1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, where: str) -> "PosteriorSettings":
        """As `CheckedSettings.from_config`."""
        if isinstance(config, Mapping) and isinstance(config.get("refine"), Mapping):
            config = {**config, "refine": RefineSettings.from_config(config["refine"], f"{where}.refine")}
        return super().from_config(config, where)

    def check_noise_level(self, noise_sigma: float | None) -> None:
        """Check that a measurement with noise of this level can be restored, before any work is done.

        Raises:
            UserError: the level is not known (None), and the image is to be refined.
        """
        if self.refine is not None and noise_sigma is None:
            raise UserError(
                "the level of this measurement's noise is not known, and refine needs it: set refine to null"
            )
