"""A picture to restore: a measurement, with or without the original."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm_inverse.measurement import Measurement
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.task import Task
from util.metrics import score


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
        shape: the picture's, (1, C, H, W).
        padded: (height, width) that the model samples, H x W or more.
        truth: the picture in [-1, 1]; None where nobody has it.
        label: the class that the model is asked for; None leaves it to the solver.
    """

    name: str
    streams: str
    task: Task
    measurement: Measurement
    shape: tuple[int, ...]
    padded: tuple[int, int]
    truth: Tensor | None = None
    label: int | None = None

    @cached_property
    def baseline(self) -> Tensor:
        """The baseline without a model, in the picture's shape."""
        return self.task.baseline(self.measurement, self.shape)

    @cached_property
    def baseline_outcome(self) -> dict[str, float | None]:
        """The baseline's `scores`, each called `baseline_...`."""
        return {f"baseline_{key}": value for key, value in self.scores(self.baseline).items()}

    def problem(self, model: LatentDiffusion, from_baseline: bool) -> InverseProblem:
        """The sampler's problem, without the truth; ``from_baseline`` adds the baseline as the first guess."""
        operator_fn, noise = self.task.operator_fn(self.measurement), self.task.noise_of(self.measurement)
        return InverseProblem(
            self.measurement.y,
            lambda x, **state: operator_fn(self.crop(x), **state),
            self.task.condition_fn(self.measurement, _CroppedDecoder(model, self.crop)),
            noise.sigma,
            self.pad(self.baseline) if from_baseline else None,
            self.measurement.state,
            lambda x: [self.pad(other) for other in self.task.operator.equivalents(self.crop(x))],
            self.padded,
            noise.noisy_share(**self.measurement.state),
            self.task.operator.linear,
            self.proximal,
            self.unmeasured,
        )

    @property
    def unmeasured(self) -> Tensor | None:
        """`Operator.unmeasured` of what the model samples; all of what is beyond the picture."""
        own = self.task.operator.unmeasured(self.shape, **self.measurement.state)
        if own is None:
            return None
        whole = own.new_ones(*own.shape[:2], *self.padded)
        self.crop(whole).copy_(own)
        return whole

    def proximal(self, y: Tensor, x0: Tensor, weight: float, **state: Tensor) -> Tensor | None:
        """`Operator.proximal` of images (B, C, *padded), whose part that is not measured stays as it is."""
        measured = self.task.operator.proximal(y, self.crop(x0), weight, **state)
        if measured is None or self.padded == tuple(self.shape[-2:]):
            return measured
        image = x0.clone()
        self.crop(image).copy_(measured)
        return image

    def crop(self, image: Tensor) -> Tensor:
        """Return the picture's part of what the model sampled, (B, C, *padded)."""
        return image[..., : self.shape[-2], : self.shape[-1]]

    def shown(self, image: Tensor) -> Tensor:
        """Return what is written of a `crop`: all of it; of a measurement that was given, its own part."""
        return image if self.truth is not None else self.task.operator.inside(image, **self.measurement.state)

    def pad(self, image: Tensor) -> Tensor:
        """Return an image of the picture's shape, reflected at the bottom and the right to ``padded``."""
        for dim, side in zip((-2, -1), self.padded, strict=True):
            size = image.shape[dim]
            if size == side:
                continue
            index = np.pad(np.arange(size), (0, side - size), mode="reflect")
            image = image.index_select(dim, torch.from_numpy(index).to(image.device))
        return image

    def pictures(self) -> dict[str, Tensor]:
        """The pictures beside a restoration, (1, C, h, w) in [-1, 1] by the name of their folder: the
        measurement, and the truth or, where there is none, the baseline.
        """
        other = {"baseline": self.shown(self.baseline)} if self.truth is None else {"input": self.truth}
        return {"label": self.task.picture(self.measurement), **other}

    def scores(self, image: Tensor) -> dict[str, float | None]:
        """How good an image (1, C, H, W) is: PSNR in decibels and SSIM; without a truth, the RMS residual."""
        if self.truth is None:
            return {"residual": self.task.residual(self.measurement, image)}
        psnr, ssim = score(self.truth, image)
        return {"psnr": psnr, "ssim": ssim}

    def outcome(self, image: Tensor) -> dict[str, float | None]:
        """A restoration's `scores` and the baseline's; without a truth, the noise level for comparison as well. And how
        large its residual is beside the noise (`residual_per_noise`).
        """
        scores, noise = self.scores(image), self.task.noise_level(self.measurement)
        level = {"noise": noise} if self.truth is None else {}
        residual = scores.get("residual") or self.task.residual(self.measurement, image)
        ratio = {"residual_per_noise": residual / noise if noise else None}
        return {**scores, **level, **self.baseline_outcome, **ratio}


class _CroppedDecoder:
    """A model whose decoded images are cropped; all else is the model's."""

    def __init__(self, model: LatentDiffusion, crop: Callable[[Tensor], Tensor]) -> None:
        self._model, self._crop = model, crop

    def differentiable_decode_first_stage(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._crop(self._model.differentiable_decode_first_stage(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
