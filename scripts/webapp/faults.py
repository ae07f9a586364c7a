"""Faults of a photo, and the words of the command for each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TASK = "configs/tasks/denoising_config.yaml"  # whose operator and noise are then replaced


@dataclass(frozen=True)
class Answers:
    """A person's description of a photo.

    Attributes:
        mask: a picture, white where the photo is good.
        noise: standard deviation of the photo's noise, in levels of 255.
        blur: standard deviation of the blur, in pixels.
        kernel: a file with the blur's kernel, in place of that.
        factor: by how much the photo is too small.
        quality: of a JPEG file.
    """

    mask: Path | None = None
    noise: float = 2.0
    blur: float = 2.0
    kernel: Path | None = None
    factor: int = 4
    quality: int = 20


def _hole(answers: Answers) -> dict[str, Any]:
    return {"name": "inpainting", "mask_file": str(answers.mask)}


def _blur(answers: Answers) -> dict[str, Any]:
    if answers.kernel is not None:
        return {"name": "motion_blur", "kernel": str(answers.kernel), "boundary": "valid"}
    side = 2 * round(3 * answers.blur) + 1  # three standard deviations to each side
    return {"name": "gaussian_blur", "kernel_size": side, "intensity": answers.blur}


def _small(answers: Answers) -> dict[str, Any]:
    return {"name": "super_resolution", "scale_factor": answers.factor}


def _noise(answers: Answers) -> dict[str, Any]:
    return {"name": "noise"}


def _jpeg(answers: Answers) -> dict[str, Any]:
    return {"name": "jpeg", "quality": answers.quality, "subsampling": 420}


FAULTS: dict[str, Callable[[Answers], dict[str, Any]]] = {
    "a hole": _hole,
    "blurred": _blur,
    "small": _small,
    "noisy": _noise,
    "JPEG": _jpeg,
}


def words(fault: str, answers: Answers) -> list[str]:
    """Return the command's words for a photo with one of `FAULTS`."""
    sigma = max(answers.noise, 0.5) * 2 / 255  # in [-1, 1]; rounding to 8 bits alone makes 0.3 levels
    return [
        *("--task_config", TASK),
        f"measurement.operator={_in_a_line(FAULTS[fault](answers))}",
        f"measurement.noise={{name: gaussian, sigma: {sigma:.4f}}}",
    ]


def _in_a_line(settings: dict[str, Any]) -> str:
    """Return settings as YAML in a line; a path that would mean something else there is quoted."""
    text: str = yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.strip()
