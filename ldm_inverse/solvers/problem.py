"""The inverse problem: a measurement, its operator and its noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from util.errors import UserError


def mean_squared_residual(measurement: Tensor, predicted: Tensor) -> Tensor:
    """Mean over all entries of ``(y - A(x))^2``, one number per sample: (B,) of measurements (B or 1, ...)."""
    return (measurement - predicted).square().flatten(1).mean(1)


@dataclass(frozen=True)
class InverseProblem:
    """A measurement ``y = A(x) + noise`` of images x (B, C, H, W) in [-1, 1].

    Attributes:
        measurement: y, (B or 1, ...).
        operator_fn: A, differentiable: images, and ``state`` as keywords, to measurements.
        condition_fn: the soft step, `conditioning` of a conditioning method: keywords x_t, measurement,
            noisy_measurement, x_prev, x_0_hat, scale and ``state`` to (x_t, norm of each residual). None where no step
            is soft.
        noise_sigma: deviation of the noise of each entry of y that has some, one number or B of them; None when it is
            not known.
        initial: a first guess at x, (B or 1, C, H, W); None where there is none.
        state: what the operator drew for each image (a mask, a kernel, a code), each tensor (B or 1, ...).
        equivalents_fn: images to images that have the same measurement and are far from each other, themselves the
            first (`Operator.equivalents`); None where there is none.
        size: (H, W) of the images; `restore` needs it.
        noisy_share: the part of each y's entries that have noise, one number or B of them: a mask drops entries, and
            their noise.
        linear: whether A is linear.
        unmeasured: the unmeasured share of each pixel, from 0 to 1, (B or 1, 1, H, W), where an image extends beyond
            its measurement; None elsewhere.
        proximal_fn: an image (1, C, H, W) x0 and a weight w to the closed form of the x that minimises
            ``||y - A(x)||^2 + w ||x - x0||^2``, given also the measurement and the state; None where there is none.
    """

    measurement: Tensor
    operator_fn: Callable[..., Tensor]
    condition_fn: Callable[..., tuple[Tensor, Tensor]] | None = None
    noise_sigma: float | Sequence[float] | None = None
    initial: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    equivalents_fn: Callable[[Tensor], Sequence[Tensor]] | None = None
    size: tuple[int, int] | None = None
    noisy_share: float | Sequence[float] = 1.0
    linear: bool = False
    proximal_fn: Callable[..., Tensor | None] | None = None
    unmeasured: Tensor | None = None

    @classmethod
    def stack(cls, problems: Sequence["InverseProblem"]) -> "InverseProblem":
        """The problems of single images with one operator as that of a batch of them, in this order; of one, itself.

        Raises:
            UserError: their measurements or states have different shapes, or only some know their noise's level.
        """
        first = problems[0]
        if len(problems) == 1:
            return first
        sigmas = [problem.noise_sigma for problem in problems]
        if None in sigmas and any(sigma is not None for sigma in sigmas):
            raise UserError("the noise level is known for only some measurements of a batch")
        try:
            return replace(
                first,
                measurement=torch.cat([problem.measurement for problem in problems]),
                noise_sigma=None if None in sigmas else tuple(sigma for each in problems for sigma in each.sigmas(1)),
                noisy_share=tuple(share for each in problems for share in _each(each.noisy_share, 1)),
                initial=None if first.initial is None else torch.cat([problem.guess() for problem in problems]),
                state={name: torch.cat([problem.state[name] for problem in problems]) for name in first.state},
                unmeasured=_stacked([problem.unmeasured for problem in problems]),
            )
        except RuntimeError as error:
            raise UserError("measurements of different shapes cannot form a batch") from error

    def predict(self, x: Tensor) -> Tensor:
        """A(x): the measurement of images x (B, C, H, W) without noise."""
        return self.operator_fn(x, **self.state)

    def loss(self, x: Tensor) -> Tensor:
        """``mean((y - A(x))^2)`` of each of the images x (B, C, H, W): (B,)."""
        return mean_squared_residual(self.measurement, self.predict(x))

    def proximal(self, x0: Tensor, weight: float) -> Tensor | None:
        """The x that minimises ``||y - A(x)||^2 + weight ||x - x0||^2`` where there is a closed form; else None."""
        return None if self.proximal_fn is None else self.proximal_fn(self.measurement, x0, weight, **self.state)

    @property
    def entries(self) -> int:
        """How many numbers one measurement has."""
        return self.measurement[0].numel()

    def guess(self) -> Tensor:
        """The first guess.

        Raises:
            UserError: there is none.
        """
        if self.initial is None:
            raise UserError("start is below 1, and this measurement has no first guess to start from: set start to 1")
        return self.initial

    def sigmas(self, batch: int) -> list[Any]:
        """``noise_sigma`` of each of a batch's measurements."""
        return _each(self.noise_sigma, batch)

    def noise_levels(self, batch: int) -> list[Any]:
        """The root mean square of the noise over all entries of each of a batch's measurements, None where it is not
        known: that of the true image's residual."""
        pairs = zip(self.sigmas(batch), _each(self.noisy_share, batch), strict=True)
        return [None if sigma is None else sigma * share**0.5 for sigma, share in pairs]

    def select(self, rows: Sequence[int], batch: int) -> "InverseProblem":
        """The problem of the images at these positions of a batch; what all share stays shared."""
        if len(rows) == batch:
            return self
        rows = list(rows)

        def pick(tensor: Tensor) -> Tensor:
            return tensor[rows] if len(tensor) == batch else tensor

        return replace(
            self,
            measurement=pick(self.measurement),
            noise_sigma=_of_rows(self.noise_sigma, rows),
            noisy_share=_of_rows(self.noisy_share, rows),
            initial=None if self.initial is None else pick(self.initial),
            state={name: pick(tensor) for name, tensor in self.state.items()},
            unmeasured=None if self.unmeasured is None else pick(self.unmeasured),
        )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The tensors of single problems as one, where they have any."""
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known) if len(known) == len(tensors) else None


def _each(value: Any, batch: int) -> list[Any]:
    """One number for each of a batch, of one for all or so many."""
    return list(value) if isinstance(value, Sequence) else [value] * batch


def _of_rows(value: Any, rows: Sequence[int]) -> Any:
    """The numbers of the samples at these positions; one where they are equal."""
    if not isinstance(value, Sequence):
        return value
    own = tuple(value[row] for row in rows)
    return own[0] if len(set(own)) == 1 else own


def decode(model: Any, z: Tensor, quantise: bool = True) -> Tensor:
    """D(z): the images (B, C, H, W) of latents, differentiable; through the codebook, or with ``quantise`` off not."""
    return model.differentiable_decode_first_stage(z, force_not_quantize=not quantise)


def latent_loss(model: Any, problem: InverseProblem, z: Tensor, quantise: bool = True) -> Tensor:
    """``mean((y - A(D(z)))^2)`` of each of the latents z (B, C, h, w): (B,)."""
    return problem.loss(decode(model, z, quantise))
