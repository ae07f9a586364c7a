"""Everything one can tune in ReSample, as frozen dataclasses that check themselves; the defaults are the reference.

`configs/presets/reference.yaml` says what each setting does. No torch here: the command checks settings before anything
heavy is imported.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from fractions import Fraction
from typing import Annotated, Any, get_type_hints

from util.errors import UserError
from util.registry import unknown

NOISE_FLOOR = "noise"
# A measurement without noise has a floor of 0, which no optimisation reaches: the reference's eps then.
NOISELESS_EPS = 1e-3

# Checks: each returns the value in its type, or raises a ValueError that says what it must be.


def _parse(value: Any) -> float:
    """A number as a YAML file or a command line gives it (``1e-6`` may arrive as text); NaN where it is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _positive(value: Any) -> float:
    number = _parse(value)
    if not 0 < number < math.inf:
        raise ValueError("must be a number above 0")
    return number


def _not_negative(value: Any) -> float:
    number = _parse(value)
    if not 0 <= number < math.inf:
        raise ValueError("must be a number, 0 or more")
    return number


def _count(value: Any) -> int:
    number = _parse(value)
    if not (number >= 1 and number.is_integer()):
        raise ValueError("must be a whole number, 1 or more")
    return int(number)


def _window(value: Any) -> int | None:
    try:
        return None if value is None else _count(value)
    except ValueError as error:
        raise ValueError(f"{error}, or null") from None


def _eps(value: Any) -> float | str:
    try:
        return value if value == NOISE_FLOOR else _positive(value)
    except ValueError as error:
        raise ValueError(f"{error}, or {NOISE_FLOOR!r}") from None


def _anchor(value: Any) -> float | None:
    try:
        return None if value is None else _positive(value)
    except ValueError as error:
        raise ValueError(f"{error}, or null") from None


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _share(value: Any) -> Fraction:
    """Kept as a ratio, so that a third of S steps is S // 3 for every S."""
    try:
        share = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise ValueError("must be a share from 0 to 1, such as 0.25 or 1/3")
    return share


def one_of(*words: str) -> Callable[[Any], str]:
    """Return the check for one of some words."""

    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return check


Positive = Annotated[float, _positive]
NotNegative = Annotated[float, _not_negative]
Count = Annotated[int, _count]
Window = Annotated[int | None, _window]
Anchor = Annotated[float | None, _anchor]
Eps = Annotated[float | str, _eps]
Flag = Annotated[bool, _flag]
Share = Annotated[Fraction, _share]


@dataclass(frozen=True)
class CheckedSettings:
    """A group of settings. Every field passes its type's check, however the group is made; a bad one is a UserError."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, _check(hint, value))
            except ValueError as error:
                raise UserError(f"{name} is {value!r}: {error}") from None

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, where: str) -> "CheckedSettings":
        """Settings from a mapping of those that differ from the defaults (None: none does).

        Args:
            config: plain values and mappings, as from a YAML file.
            where: the mapping's dotted path, for error messages.

        Raises:
            UserError: an unknown key (the nearest known one is offered), one that is missing and has no default, or a
                value of the wrong type or range.
        """
        if not isinstance(config, Mapping | None):
            raise UserError(f"{where} is {config!r}: must be a mapping of settings")
        hints = get_type_hints(cls)
        values = {}
        for key, value in (config or {}).items():
            if key not in hints:
                raise unknown(f"setting of {where}", key, hints)
            values[key] = hints[key].from_config(value, f"{where}.{key}") if _is_group(hints[key]) else value
        missing = [setting.name for setting in fields(cls) if _is_required(setting) and setting.name not in values]
        if missing:
            raise UserError(f"{where} needs {', '.join(missing)}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}.{error}") from None

    def to_config(self) -> dict[str, Any]:
        """The mapping of plain values that `from_config` turns back into these settings."""
        plain = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        for key, value in plain.items():
            if isinstance(value, CheckedSettings):
                plain[key] = value.to_config()
            elif isinstance(value, Fraction):
                plain[key] = str(value)
        return plain


def _is_required(setting: Field) -> bool:
    """Whether a field of a dataclass has no default."""
    return setting.default is MISSING and setting.default_factory is MISSING


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, CheckedSettings)


def _check(hint: Any, value: Any) -> Any:
    if not _is_group(hint):
        return hint.__metadata__[0](value)
    if not isinstance(value, hint):
        raise ValueError(f"must be {hint.__name__}")
    return value


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


def _final(value: Any) -> bool | LatentSettings:
    if not isinstance(value, bool | LatentSettings):
        raise ValueError("must be true, false or a mapping of settings")
    return value


@dataclass(frozen=True)
class ResampleSettings(CheckedSettings):
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
    refine: Annotated[RefineSettings | None, _refine] = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, where: str = "conditioning.resample") -> "ResampleSettings":
        """As `CheckedSettings.from_config`; what a mapping ``final`` leaves out is as in ``latent``."""
        if isinstance(config, Mapping) and isinstance(config.get("final"), Mapping):
            # The latent group on its own first: its mistakes are then told under its own name.
            LatentSettings.from_config(config.get("latent"), f"{where}.latent")
            merged = {**(config.get("latent") or {}), **config["final"]}
            config = {**config, "final": LatentSettings.from_config(merged, f"{where}.final")}
        if isinstance(config, Mapping) and isinstance(config.get("refine"), Mapping):
            config = {**config, "refine": RefineSettings.from_config(config["refine"], f"{where}.refine")}
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
            UserError: as `PixelSettings.threshold`; or the level is not known, and the image is to be refined.
        """
        for stage in (self.pixel, self.latent, self.final_stage or self.latent):
            stage.threshold(noise_sigma)
        if self.refine is not None and noise_sigma is None:
            raise UserError("the level of this measurement's noise is not known, and refine needs it: set refine to null")

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
