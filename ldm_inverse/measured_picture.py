"""What is to be restored: a measurement, with or without the picture that it was made of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ldm.models.diffusion.posterior import InverseProblem
from ldm_inverse.task import Measurement, Task
from util.metrics import score

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion


@dataclass
class MeasuredPicture:
    """A measurement of a picture, and the picture where there is one.

    Where the model cannot take the picture's size, it samples a larger one, ``padded``, of which only the part at the
    top left is measured, written and scored; what the prior puts around it is free.

    Attributes:
        name: under which its results are written.
        streams: what its random streams are called.
        task: what made the measurement.
        measurement: of the picture.
        shape: the picture's, (1, 3, H, W).
        padded: (height, width) that the model samples, H x W or more.
        truth: the picture in [-1, 1]; None where nobody has it.
    """

    name: str
    streams: str
    task: Task
    measurement: Measurement
    shape: tuple[int, ...]
    padded: tuple[int, int]
    truth: Tensor | None = None

    @cached_property
    def baseline(self) -> Tensor:
        """What a person would make of the measurement without a model, in the picture's shape."""
        return self.task.baseline(self.measurement, self.shape)

    @cached_property
    def baseline_outcome(self) -> dict[str, float | None]:
        """The baseline's `scores`, each called `baseline_...`."""
        return {f"baseline_{key}": value for key, value in self.scores(self.baseline).items()}

    def problem(self, model: "LatentDiffusion", from_baseline: bool) -> InverseProblem:
        """What the sampler is told: never the truth; ``from_baseline`` adds the baseline as the first guess."""
        operator_fn = self.task.operator_fn(self.measurement)
        return InverseProblem(
            self.measurement.y,
            lambda x, **state: operator_fn(self.crop(x), **state),
            self.task.condition_fn(self.measurement, _CroppedDecoder(model, self.crop)),
            self.task.noise_level(self.measurement),
            self.pad(self.baseline) if from_baseline else None,
            self.measurement.state,
            lambda x: [self.pad(other) for other in self.task.operator.equivalents(self.crop(x))],
        )

    def crop(self, image: Tensor) -> Tensor:
        """Return the picture's part of what the model sampled, (B, 3, *padded)."""
        return image[..., : self.shape[-2], : self.shape[-1]]

    def pad(self, image: Tensor) -> Tensor:
        """Return an image of the picture's shape, reflected at the bottom and the right to ``padded``."""
        for dim, side in zip((-2, -1), self.padded, strict=True):
            size = image.shape[dim]
            index = np.pad(np.arange(size), (0, side - size), mode="reflect")
            image = image.index_select(dim, torch.from_numpy(index).to(image.device))
        return image

    def pictures(self) -> dict[str, Tensor]:
        """What there is to look at beside a restoration, (1, C, h, w) in [-1, 1] by the name of its folder: the
        measurement, and the truth or, where there is none, the baseline.
        """
        other = {"baseline": self.baseline} if self.truth is None else {"label": self.truth}
        return {"input": self.task.picture(self.measurement), **other}

    def scores(self, image: Tensor) -> dict[str, float | None]:
        """How good an image (1, 3, H, W) is: PSNR in decibels and SSIM; without a truth, the RMS residual."""
        if self.truth is None:
            return {"residual": self.task.residual(self.measurement, image)}
        psnr, ssim = score(self.truth, image)
        return {"psnr": psnr, "ssim": ssim}

    def outcome(self, image: Tensor) -> dict[str, float | None]:
        """A restoration's `scores` and the baseline's; without a truth, the noise level for comparison as well."""
        noise = {"noise": self.task.noise_level(self.measurement)} if self.truth is None else {}
        return {**self.scores(image), **noise, **self.baseline_outcome}


class _CroppedDecoder:
    """A model whose decoded images are cropped; all else is the model's."""

    def __init__(self, model: "LatentDiffusion", crop: Callable[[Tensor], Tensor]) -> None:
        self._model, self._crop = model, crop

    def differentiable_decode_first_stage(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._crop(self._model.differentiable_decode_first_stage(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
