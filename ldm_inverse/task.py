"""A task: how a picture is degraded, and which measurements can be restored."""

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.colour import Say
from data.measured import ALPHA
from data.sources import Origin
from ldm_inverse.condition_methods import get_conditioning_method
from ldm_inverse.measurement import Measurement
from ldm_inverse.noises import NOISES, Noise
from ldm_inverse.operators.base import Operator, build_operator, drawn, measured
from ldm_inverse.operators.mask_files import ALPHA as MASK_IS_ALPHA
from ldm_inverse.value_range import in_range
from util.errors import UserError
from util.logging import LOGGER


@contextmanager
def _about(part: str, not_settings: Collection[str] = ()) -> Iterator[None]:
    """Say in a UserError which part of the task it is about; refuse keywords that only code can give."""
    try:
        if not_settings:
            raise UserError(f"{', '.join(sorted(not_settings))}: a task cannot set this")
        yield
    except UserError as error:
        if str(error).startswith(part):
            raise
        raise UserError(f"{part}: {error}") from error


def _made(make: Callable[..., Any], settings: Mapping[str, Any], part: str) -> Any:
    """Return what is made of a ``name`` and keywords, which are the settings at a dotted path."""
    keywords = dict(settings)
    if "name" not in keywords:
        raise UserError(f"{part} needs name")
    return make(keywords.pop("name"), keywords, part)


class Task:
    """A problem to solve: an operator, a noise, and how the sampler is steered.

    Args:
        operator: ``name`` and keywords of the operator.
        noise: ``name`` and keywords of the noise.
        mask_opt: options of the operator's masks; they are added to its keywords (published task files list them
            separately).
        method: name of the method of the soft step (published as conditioning method).
        params: its keywords.
        span: black and white in the pictures that given measurements are of, where that is not -1 and 1.

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
        span: tuple[float, float] | None = None,
    ) -> None:
        self.span = span
        self.settings = {"operator": {**operator, **(mask_opt or {})}, "noise": dict(noise)}
        self._method, self._params, self._device = method, dict(params or {}), torch.device("cpu")
        with _about("measurement.operator"):
            self.operator: Operator = _made(build_operator, self.settings["operator"], "measurement.operator")
        with _about("measurement.noise", not_settings=noise.keys() & {"rng"}):
            self.noise: Noise = _made(NOISES.make, noise, "measurement.noise")
        with _about("conditioning", not_settings=self._params.keys() & {"model", "operator", "noiser"}):
            self._soft_step(model=None)  # a mistake in its settings should not wait for the model

    def to(self, device: torch.device) -> "Task":
        """Move the operator to a device, where everything is then computed."""
        self.operator.to(device)
        self._device = device
        return self

    def _soft_step(self, model: Any) -> Any:
        return get_conditioning_method(self._method, model, self.operator, self.noise, **self._params)

    def check_channels(self, channels: int) -> None:
        """Check that the operator can take images of so many channels.

        Raises:
            UserError: it needs colour.
        """
        if channels != 3 and self.operator.colour_only:
            name = self.settings["operator"]["name"]
            raise UserError(
                f"measurement.operator: {name} is for colour images, and the model's have {channels} channel"
            )

    def measure(
        self,
        image: Tensor,
        rng: np.random.RandomState,
        noise_rng: np.random.RandomState,
        origin: Origin | None = None,
    ) -> Measurement:
        """Degrade images (B, C, H, W) in [-1, 1]: draw the operator's state from one stream, the noise from another.

        ``origin`` is the picture of a single image, which may have state of its own (`Operator.draw_for`).
        """
        image = image.to(self._device)
        draw = self.operator.draw if origin is None else partial(self.operator.draw_for, origin)
        state = {name: tensor.to(self._device) for name, tensor in drawn(draw(image.shape, rng), self.operator).items()}
        with torch.no_grad():
            return Measurement(self.noise(measured(self.operator, image, state), noise_rng, **state), state)

    def try_out(self, shape: Sequence[int], origin: Origin) -> None:
        """Measure a grey image (1, C, H, W) in place of a picture, to find errors in the code of a plugin.

        Raises:
            UserError: the operator cannot be used.
        """
        draw, grey = partial(self.operator.draw_for, origin), torch.zeros(tuple(shape)).requires_grad_()
        state = drawn(draw(shape, np.random.RandomState(0)), self.operator)
        with torch.enable_grad():
            measured(self.operator, grey, state)

    def accept(self, tensors: Mapping[str, Tensor], image: Tensor) -> Measurement:
        """Return a measurement that was saved as `Measurement.tensors`, when it can be one of images of this shape.

        A noise level is estimated where the task says so.

        Raises:
            UserError: it cannot.
        """
        if "y" not in tensors:
            raise UserError("the saved measurement is not of this task's operator: it has no y")
        measurement = self._on_device(tensors)
        expected = self._measured_shape(image.shape, measurement.state)
        if measurement.y.shape != expected:
            raise UserError(
                f"the saved measurement has shape {tuple(measurement.y.shape)}, and that of the picture would have "
                f"{tuple(expected)}: give the pictures that were measured"
            )
        return replace(measurement, noise=self.noise.of(measurement.y))

    def _on_device(self, tensors: Mapping[str, Tensor]) -> Measurement:
        state = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        return Measurement(state.pop("y"), state)

    def _measured_shape(self, shape: Sequence[int], state: Mapping[str, Tensor]) -> torch.Size:
        """Return the shape of measurements, with this state, of images of ``shape``.

        Raises:
            UserError: the operator does not take the state.
        """
        known = {*self.operator.state_names, *inspect.signature(self.operator.forward).parameters}
        try:
            if state.keys() - known:
                raise TypeError(f"it has {', '.join(sorted(state.keys() - known))}")
            with torch.no_grad():
                return measured(self.operator, torch.zeros(shape, device=self._device), state).shape
        except (TypeError, RuntimeError) as error:
            raise UserError(f"the saved measurement is not of this task's operator: {error}") from error

    def given(
        self,
        origin: Origin,
        tensors: Mapping[str, Tensor],
        channels: int = 3,
        say: Say = LOGGER.log,
        is_saved: bool = False,
    ) -> tuple[Measurement, tuple[int, int, int, int]]:
        """Return a person's measurement, and the shape (1, channels, H, W) of the image that it is of.

        State that is not given is the operator's own, where nothing is random in it. With the task's ``span``, y is in
        those units, and is brought to what the operator gives for pictures in [-1, 1]. What a mask drops is made zero;
        of three equal channels one is taken where the operator gives one, and one is repeated where it gives three; a
        noise level is estimated where the task says so. A picture's own colours are measured where its alpha channel is
        the mask, so that a soft edge mixes no white into them; else they are laid over white.

        Args:
            origin: where it was read.
            tensors: ``y`` (1, ...), and the operator's state, or none of it; of a picture with transparency also that
                (`data.measured.ALPHA`).
            channels: of the image.
            say: is told what looks odd.
            is_saved: whether a run has written it; then its state and its range need no check.

        Raises:
            UserError: it is no measurement by this operator, the operator's state is not known, or values are far from
                those that the operator gives.
        """
        y = tensors["y"]
        height, width = self.operator.image_size(y.shape)
        shape = (1, channels, height, width)
        state = {key: value for key, value in tensors.items() if key not in ("y", ALPHA)}
        if state and not is_saved:
            state = self.operator.given_state(state, shape)
        if state:
            height, width = self.operator.image_size(y.shape, **state)
            shape = (1, channels, height, width)
        brought = {} if state else self.operator.brought(origin, shape)
        state = state or brought
        if not state:
            self.operator.check_image(origin, height, width)
            state = self._known_state(origin, shape)
        is_mask = "mask" in brought or self.settings["operator"].get("mask_file") == MASK_IS_ALPHA
        if ALPHA in tensors and not is_mask:
            y = self._over_white(y, tensors[ALPHA], say)
        measurement = self._on_device({"y": y, **state})
        y, expected = measurement.y, self._measured_shape(shape, measurement.state)
        if expected[1:2] == (1,) and y.shape[1] == 3 and (y == y[:, :1]).all():
            y = y[:, :1]
        if expected[1:2] == (3,) and y.ndim == len(expected) and y.shape[1] == 1:
            y = y.expand(expected[0], 3, *y.shape[2:])
        if y.shape != expected:
            raise UserError(
                f"the measurement has shape {tuple(y.shape)}, and that of an image of {height} x {width} would have "
                f"{tuple(expected)}{self._likely_cause(y, expected, channels, measurement.state)}"
            )
        if "mask" in state:
            if self.noise.is_estimated:
                raise UserError("sigma: estimate cannot tell noise from the edges of a mask: give a number")
            y = y * (measurement.state["mask"] > 0)
        if not is_saved:
            y = in_range(y, self.operator, shape, measurement.state, self.noise, self.span, say)
        return Measurement(y, measurement.state, self.noise.of(y)), shape

    def _over_white(self, y: Tensor, alpha: Tensor, say: Say) -> Tensor:
        say(logging.INFO, "its transparent parts are laid over white")
        return y * alpha + (1 if self.span is None else self.span[1]) * (1 - alpha)

    def _likely_cause(self, y: Tensor, expected: Sequence[int], channels: int, state: Mapping[str, Tensor]) -> str:
        """Return what to say of a measurement of another shape: its channels, or its last two sides exchanged."""
        if y.ndim == len(expected) and y.shape[2:] == expected[2:]:
            return f": it has {y.shape[1]} channels where {expected[1]} would fit the model"
        turned = y.transpose(-1, -2).shape
        height, width = self.operator.image_size(turned, **state)
        try:
            fits = self._measured_shape((1, channels, height, width), state)[-2:] == turned[-2:]
        except UserError:
            fits = False
        units = f" ({self.operator.units})" if self.operator.units else ""
        return f"; with its last two sides exchanged it would be one of {height} x {width}{units}" if fits else ""

    def _known_state(self, origin: Origin, shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
        """Return the operator's state for an image, which must be the same whatever the random stream."""
        self.operator.check_draw()
        first, second = (self.operator.draw_for(origin, shape, np.random.RandomState(seed)) for seed in (0, 1))
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
        return partial(self._soft_step(model).conditioning, **measurement.state)

    def noise_of(self, measurement: Measurement) -> Noise:
        """Return the noise of a measurement: its own, or the task's."""
        return measurement.noise or self.noise

    def noise_level(self, measurement: Measurement) -> float | None:
        """Return the deviation of the noise of each measured entry of y; None where it depends on the signal."""
        return self.noise_of(measurement).sigma

    def picture(self, measurement: Measurement) -> Tensor:
        """Return the measurement as a picture to look at, (B, 1 or 3, h, w), black at -1 and white at 1."""
        return self.operator.picture(measurement.y)

    def residual(self, measurement: Measurement, image: Tensor) -> float:
        """Return the root mean square of ``y - A(x)`` over the measured entries of y, for images x (B, C, H, W) in
        [-1, 1].

        For the truth it is about the noise level (`noise_level`); a smaller residual fits noise.
        """
        with torch.no_grad():
            difference = measurement.y - self.operator(image.to(self._device), **measurement.state)
        measured = self.noise_of(measurement).noisy_share(**measurement.state)
        return float((difference.square().mean() / max(measured, torch.finfo(difference.dtype).tiny)).sqrt())

    def baseline(self, measurement: Measurement, shape: Sequence[int]) -> Tensor:
        """Return the restoration without a model: (B, C, H, W) in [-1, 1]."""
        sigma = self.noise_of(measurement).sigma
        with torch.no_grad():
            return self.operator.baseline(measurement.y, shape, sigma, **measurement.state).clamp(-1, 1)
