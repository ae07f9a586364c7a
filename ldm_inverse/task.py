"""A task: what is done to a picture, and what a measurement of it is."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_inverse import baselines
from ldm_inverse.condition_methods import get_conditioning_method
from ldm_inverse.noises import Noise, get_noise
from ldm_inverse.operators import OPERATORS, Operator
from util.errors import UserError


@dataclass(frozen=True)
class Measurement:
    """A measurement ``y = noise(A(x, **state))`` of images x (B, 3, H, W) in [-1, 1].

    Attributes:
        y: the measurement, (B, ...).
        state: what the operator drew for it (a mask, a kernel, a code); empty where nothing is random.
        noise: of this measurement, where that is not the task's.
    """

    y: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)
    noise: Noise | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return y and the state by name, for a file."""
        return {"y": self.y, **self.state}


@contextmanager
def _about(part: str, not_settings: Collection[str] = ()) -> Iterator[None]:
    """Say in a UserError which part of the task it is about; refuse keywords that only code can give."""
    try:
        if not_settings:
            raise UserError(f"{', '.join(sorted(not_settings))}: not for a task to give")
        yield
    except UserError as error:
        raise UserError(f"{part}: {error}") from error


class Task:
    """What is to be solved: an operator, a noise, and how the sampler is steered.

    Args:
        operator: ``name`` and keywords of the operator.
        noise: ``name`` and keywords of the noise.
        mask_opt: options of the operator's masks; they join its keywords, as published task files keep them apart.
        method: name of the conditioning method.
        params: its keywords.

    Raises:
        UserError: an unknown name, or a keyword that is unknown, missing or out of range.
    """

    def __init__(
        self,
        operator: Mapping[str, Any],
        noise: Mapping[str, Any],
        mask_opt: Mapping[str, Any] | None = None,
        method: str = "ps",
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = {"operator": {**operator, **(mask_opt or {})}, "noise": dict(noise)}
        self._method, self._params, self._device = method, dict(params or {}), torch.device("cpu")
        with _about("measurement.operator"):
            self.operator: Operator = OPERATORS.build(**self.settings["operator"]).eval().requires_grad_(False)
        with _about("measurement.noise", not_settings=noise.keys() & {"rng"}):
            self.noise: Noise = get_noise(**noise)
        with _about("conditioning", not_settings=self._params.keys() & {"model", "operator", "noiser"}):
            self._conditioning(model=None)  # a mistake in its settings should not wait for the model

    def to(self, device: torch.device) -> "Task":
        """Move the operator to a device, where everything is then computed."""
        self.operator.to(device)
        self._device = device
        return self

    def _conditioning(self, model: Any) -> Any:
        return get_conditioning_method(self._method, model, self.operator, self.noise, **self._params)

    def measure(
        self, image: Tensor, rng: np.random.RandomState, noise_rng: np.random.RandomState, name: str | None = None
    ) -> Measurement:
        """Degrade images (B, 3, H, W) in [-1, 1]: draw the operator's state from one stream, the noise from another.

        ``name`` is that of a single image, for which there may be state of its own (`Operator.draw_for`).
        """
        image = image.to(self._device)
        draw = self.operator.draw if name is None else partial(self.operator.draw_for, name)
        state = draw(image.shape, rng)
        state = {name: tensor.to(self._device) for name, tensor in state.items()}
        with torch.no_grad():
            return Measurement(self.noise(self.operator(image, **state), noise_rng, **state), state)

    def accept(self, tensors: Mapping[str, Tensor], image: Tensor) -> Measurement:
        """Return a measurement that was saved as `Measurement.tensors`, when it can be one of images of this shape.

        Raises:
            UserError: it cannot.
        """
        if "y" not in tensors:
            raise UserError("the saved measurement is none of this task's operator: it has no y")
        measurement = self._on_device(tensors)
        expected = self._measured_shape(image.shape, measurement.state)
        if measurement.y.shape != expected:
            raise UserError(
                f"the saved measurement has shape {tuple(measurement.y.shape)}, and that of the picture would have "
                f"{tuple(expected)}: give the pictures that were measured"
            )
        return measurement

    def _on_device(self, tensors: Mapping[str, Tensor]) -> Measurement:
        state = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        return Measurement(state.pop("y"), state)

    def _measured_shape(self, shape: Sequence[int], state: Mapping[str, Tensor]) -> torch.Size:
        """Return the shape of measurements, with this state, of images of ``shape``.

        Raises:
            UserError: the operator does not take the state.
        """
        try:
            with torch.no_grad():
                return self.operator(torch.zeros(shape, device=self._device), **state).shape
        except (TypeError, RuntimeError) as error:
            raise UserError(f"the saved measurement is none of this task's operator: {error}") from error

    def given(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[Measurement, tuple[int, int, int, int]]:
        """Return a person's measurement, and the shape (1, 3, H, W) of the image that it is of.

        State that is not given is the operator's own, where nothing is random in it. What a mask drops is made zero, of
        three equal channels one is taken where the operator gives one, and a noise level is estimated where the task
        says so.

        Args:
            name: the image's.
            tensors: ``y`` (1, ...), and the operator's state, or none of it.

        Raises:
            UserError: it is no measurement by this operator, or the operator's state is not known.
        """
        height, width = self.operator.image_size(tensors["y"].shape)
        shape = (1, 3, height, width)
        state = {key: value for key, value in tensors.items() if key != "y"}
        if not state:
            self.operator.check_image(name, height, width)
            state = self._known_state(name, shape)
        measurement = self._on_device({"y": tensors["y"], **state})
        y, expected = measurement.y, self._measured_shape(shape, measurement.state)
        if expected[1:2] == (1,) and y.shape[1] == 3 and (y == y[:, :1]).all():
            y = y[:, :1]
        if y.shape != expected:
            raise UserError(
                f"the measurement has shape {tuple(y.shape)}, and that of an image of {height} x {width} would have "
                f"{tuple(expected)}"
            )
        if "mask" in state:
            if self.noise.is_estimated:
                raise UserError("sigma: estimate cannot tell noise from the edges of a mask: give a number")
            y = y * (measurement.state["mask"] > 0)
        return Measurement(y, measurement.state, self.noise.of(y)), shape

    def _known_state(self, name: str, shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
        """Return the operator's state for an image, which must be the same whatever the random stream."""
        self.operator.check_draw()
        first, second = (self.operator.draw_for(name, shape, np.random.RandomState(seed)) for seed in (0, 1))
        random = [key for key, value in first.items() if not torch.equal(value, second[key])]
        if random:
            raise UserError(
                f"the task draws the {', '.join(random)} at random, and a measurement that is given has its own: name "
                "the file in the task (mask_file, or kernel), or put it beside y in a .safetensors file"
            )
        return first

    def operator_fn(self, measurement: Measurement) -> Callable[[Tensor], Tensor]:
        """Return A with the measurement's own state: images to measurements."""
        return partial(self.operator.forward, **measurement.state)

    def condition_fn(self, measurement: Measurement, model: Any) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return the soft step (`PosteriorSampling.conditioning`) with the measurement's own state."""
        return partial(self._conditioning(model).conditioning, **measurement.state)

    def noise_level(self, measurement: Measurement) -> float | None:
        """Return the root mean square of the noise over all entries of y; None where it depends on the signal."""
        return (measurement.noise or self.noise).root_mean_square(**measurement.state)

    def picture(self, measurement: Measurement) -> Tensor:
        """Return the measurement as a picture to look at, (B, 1 or 3, h, w), black at -1 and white at 1."""
        return self.operator.picture(measurement.y)

    def residual(self, measurement: Measurement, image: Tensor) -> float:
        """Return the root mean square of ``y - A(x)`` over all entries of y, for images x (B, 3, H, W) in [-1, 1].

        For the truth that is about the noise level (`noise_level`); a smaller one explains noise.
        """
        with torch.no_grad():
            difference = measurement.y - self.operator(image.to(self._device), **measurement.state)
        return float(difference.square().mean().sqrt())

    def baseline(self, measurement: Measurement, shape: Sequence[int]) -> Tensor:
        """Return what a person would make of the measurement without a model: (B, 3, H, W) in [-1, 1]."""
        sigma = (measurement.noise or self.noise).sigma
        return baselines.baseline(self.operator, measurement.y, shape, sigma, measurement.state)
