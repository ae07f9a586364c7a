"""What the `training` block of a model's YAML may say, as frozen dataclasses that check themselves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from ldm.models.diffusion.checked_settings import CheckedSettings, Count, NotNegative, Positive, Share, one_of
from util.errors import UserError


def _crop(value: Any) -> int | None:
    return None if value is None else Count.__metadata__[0](value)


def _decay(value: Any) -> float:
    if not Positive.__metadata__[0](value) < 1:
        raise ValueError("must be a number above 0 and below 1")
    return float(value)


@dataclass(frozen=True)
class Stage(CheckedSettings):
    """A stage of a training: its share of the time, pictures a step, and side of the random crop (autoencoder)."""

    share: Share
    batch_size: Count
    crop: Annotated[int | None, _crop] = None


def _stages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list of stages")
    stages = [asdict(Stage.from_config(stage, f"stage {number}")) for number, stage in enumerate(value)]
    return [{**stage, "share": float(stage["share"])} for stage in stages]


@dataclass(frozen=True)
class TrainingSettings(CheckedSettings):
    """What both stages of training need."""

    learning_rate: Positive
    ema_decay: Annotated[float, _decay]
    stages: Annotated[list[dict[str, Any]], _stages]


@dataclass(frozen=True)
class AutoencoderSettings(TrainingSettings):
    """`training.autoencoder`; configs/latent-diffusion/demo-ldm-vq-4.yaml says what each does."""

    init: Annotated[str, one_of("linear", "random")]
    whitening: NotNegative
    trainable: Annotated[str, one_of("all", "decoder")]
    quantised_share: Share = 0.5

    def check_crops(self, resolution: int, downsampling: int) -> None:
        """Check that every stage has a crop that can be cut and encoded.

        Raises:
            UserError: one has not.
        """
        for stage in self.stages:
            crop = stage["crop"]
            if crop is None or crop > resolution or crop % downsampling:
                raise UserError(
                    f"training.autoencoder.stages: crop is {crop}: must be a multiple of {downsampling}, "
                    f"at most {resolution}"
                )


@dataclass(frozen=True)
class PriorSettings(TrainingSettings):
    """`training.diffusion`."""

    weight_cap: Positive


GROUPS = {"autoencoder": AutoencoderSettings, "diffusion": PriorSettings}


def read_training(config: Mapping[str, Any], stage: str) -> AutoencoderSettings | PriorSettings:
    """Return the settings of a stage, "autoencoder" or "diffusion", from a model's YAML as a mapping.

    Raises:
        UserError: there are none, a key is missing or unknown, or a value is of the wrong type or out of range.
    """
    block = config.get("training")
    if not isinstance(block, Mapping) or not isinstance(block.get(stage), Mapping):
        raise UserError(
            f"the configuration has no `training.{stage}` block: see configs/latent-diffusion/demo-ldm-vq-4.yaml"
        )
    return GROUPS[stage].from_config(block[stage], f"training.{stage}")
