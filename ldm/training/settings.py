"""The `training` block of a model's YAML."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator

from util.errors import UserError
from util.settings import Count, NotNegative, Number, Positive, Settings, Share, number, read

# A power-function average is at most this wide: with equal weights for all steps.
WIDEST = 0.288

AverageWidth = Annotated[float, number(0, WIDEST, above_low=True)]


class Stage(Settings):
    """Part of a training: its share of the whole and the pictures of a step.

    Attributes:
        crop: side of the random crop (autoencoder).
        taught_below: ends of the timesteps at which each teacher's estimate takes the place of the noise, ascending:
            the first teaches those below the first end, the next those from there to its own (prior).
    """

    share: Share
    batch_size: Count
    crop: Count | None = None
    taught_below: tuple[Count, ...] = ()

    @field_validator("taught_below")
    @classmethod
    def _ends_ascend(cls, ends: tuple[int, ...]) -> tuple[int, ...]:
        if list(ends) != sorted(set(ends)):
            raise ValueError("expected ascending timesteps")
        return ends


class TrainingSettings(Settings):
    """The settings of both stages of training.

    Attributes:
        learning_rate: the highest, reached after a warm-up.
        flat_steps: the rate stays there for so many steps, then falls as one over the square root of the step, so that
            no end need be known. None: it falls along half a cosine to the end.
        averages: widths of the moving averages of the weights, as shares of the training so far.
        stages: the parts of the training, in order.
    """

    learning_rate: Positive
    flat_steps: Count | None = None
    averages: tuple[AverageWidth, ...] = Field(min_length=1)
    stages: tuple[Stage, ...] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _shares_add_up(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if abs(sum(float(stage.share) for stage in stages) - 1) > 1e-6:
            raise ValueError("expected shares that add up to 1")
        return stages


class CodebookFit(Settings):
    """The fit of a codebook before training: to so many latents, in so many of Lloyd's iterations."""

    codes: Count = 400_000
    iterations: Count = 8


class AutoencoderSettings(TrainingSettings):
    """`training.autoencoder`; configs/latent-diffusion/demo-ldm-vq-4.yaml says what each does."""

    init: Literal["linear", "random"]
    whitening: NotNegative
    codebook: CodebookFit | None = None
    trainable: Literal["all", "decoder"]
    quantised_share: Share = Fraction(1, 2)
    consistency: NotNegative = 0.0

    def check_crops(self, resolution: int, downsampling: int) -> None:
        """Check that every stage has a crop that can be cut and encoded.

        Raises:
            UserError: one has not.
        """
        for index, stage in enumerate(self.stages):
            if stage.crop is None or stage.crop > resolution or stage.crop % downsampling:
                raise UserError(
                    f"training.autoencoder.stages.{index}.crop: expected a multiple of {downsampling}, "
                    f"at most {resolution}, got {stage.crop}"
                )


class NoiseLevels(Settings):
    """Timesteps drawn so that the logarithm of their noise-to-signal ratio is about normal."""

    mean: Number
    deviation: Positive


class PriorSettings(TrainingSettings):
    """`training.diffusion`: ``weight_cap`` and ``timesteps`` are those of `ldm.training.diffusion.DiffusionLoss`."""

    weight_cap: Positive
    timesteps: Literal["uniform"] | NoiseLevels = "uniform"

    def check_teachers(self, number: int) -> None:
        """Check that the stages ask for all of so many teachers, and for no more.

        Raises:
            UserError: they do not.
        """
        ends = {len(stage.taught_below) for stage in self.stages} - {0}
        if ends != ({number} if number else set()):
            raise UserError(
                f"--teacher gives {number}, and taught_below in training.diffusion.stages has "
                f"{' or '.join(map(str, sorted(ends))) or 'none'}: expected as many"
            )


T = TypeVar("T", bound=TrainingSettings)


def read_training(model: type[T], config: Mapping[str, Any], stage: str) -> T:
    """Return the settings ``training.STAGE`` of a model's YAML, given as a mapping, as a ``model``.

    Raises:
        UserError: there are none, a key is missing or unknown, or a value is of the wrong type or out of range.
    """
    block = config.get("training")
    if not isinstance(block, Mapping) or not isinstance(block.get(stage), Mapping):
        raise UserError(
            f"the configuration has no `training.{stage}` block: see configs/latent-diffusion/demo-ldm-vq-4.yaml"
        )
    return read(model, block[stage], f"training.{stage}")
