"""The values of given measurements: brought to those of pictures in [-1, 1], and told where they cannot be such."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from data.colour import Say
from ldm_inverse.noises import Noise
from ldm_inverse.operators.base import Operator
from util.errors import UserError

# Times the largest value that an operator gives: ringing goes as far as the first at most, and nothing as the second.
RINGING, FAR = 1.5, 4.0
DEVIATIONS = 6  # of normal noise, beyond which is one value in 500 million
STRONG = 0.25  # noise: four deviations are the distance from grey to black
TOPS = (255, 1023, 4095, 65535)  # white in files of 8 to 16 bits, whose black is 0


def in_range(
    y: Tensor,
    operator: Operator,
    shape: Sequence[int],
    state: Mapping[str, Tensor],
    noise: Noise,
    span: tuple[float, float] | None,
    say: Say,
) -> Tensor:
    """Bring y from the units of ``span`` (None: [-1, 1]) to those of pictures in [-1, 1]; say what cannot be of such.

    A linear operator gives ``A(a x + b) = a A(x) + b A(1)``, which holds for sinograms as for pictures.

    Args:
        y: a measurement.
        operator, state: what made it, of images of ``shape``.
        noise: in it, in units of [-1, 1].
        span: black and white.
        say: is told what looks odd.

    Raises:
        UserError: values are far from those that the operator gives, or y cannot be brought to other units.
    """
    if span is not None and not operator.keeps_units:
        raise UserError(
            "measurement.range cannot convert these values, which are neither pictures nor linear in the image: give "
            "those of pictures in [-1, 1]"
        )
    signs = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0)).sub(0.5).sign().to(y)
    white = torch.ones_like(signs)
    with torch.no_grad():
        ends = [operator(picture, **state) for picture in (white, -white, signs)]
    if span is not None:
        half, middle = (span[1] - span[0]) / 2, (span[1] + span[0]) / 2
        y = (y - middle * (ends[0] if operator.linear else 1.0)) / half
    least, most = min(float(end.min()) for end in ends), max(float(end.abs().max()) for end in ends)
    sigma = noise.of(y).sigma or 0.0
    largest, excess = float(y.abs().max()), y.abs().sub(most).clamp(min=0).square().mean().sqrt()
    # Of what lies beyond, the noise alone explains no more than its own root mean square.
    beyond = float(excess) > sigma * noise.noisy_share(**state) ** 0.5 + 0.1 * most
    if beyond or largest > RINGING * most + DEVIATIONS * sigma:
        message = _what_is_far(y, most, sigma) + (f"; {operator.units}" if operator.units else "")
        if largest > FAR * most + 10 * sigma:
            raise UserError(message)
        say(logging.WARNING, message)
    elif span is None and least < 0 and _is_from_zero_up(y, sigma):
        say(
            logging.WARNING,
            f"no value is below 0{', but for the noise' if y.min() < 0 else ''}, where this operator's go down to "
            f"{least:g}: if the pictures were in [0, 1], give measurement.range=[0, 1]",
        )
    return y


def _is_from_zero_up(y: Tensor, sigma: float) -> bool:
    """Whether no value is negative but by noise. What lies in [0, 1] throughout is for those who read files to judge:
    for them a bright picture in a file of 8 bits is none from 0 up.
    """
    if y.min() >= 0:
        return bool(y.max() > 1)
    # Normal noise is below minus three deviations once in 740 times. Strong noise would hide a dark picture, too.
    return 0 < sigma <= STRONG and float(y.lt(-3 * sigma).float().mean()) < 1 / 500


def _what_is_far(y: Tensor, most: float, sigma: float) -> str:
    """Return what is wrong with values beyond the ``most`` that an operator gives, and the likely cause."""
    least, largest = float(y.min()), float(y.max())
    top = next((top for top in TOPS if largest <= (RINGING * most + DEVIATIONS / 2 * min(sigma, most)) * top), TOPS[-1])
    is_centred = float(y.mean()) < 0.05 * largest  # as no picture from 0 up is
    remedy = (
        "say which values are black and white: measurement.range=[BLACK, WHITE]"
        if is_centred
        else f"if the pictures were in 0..{top}, give measurement.range=[0, {top}]"
    )
    noise = f", with noise of {sigma:g}" if sigma else ""
    return (
        f"its values, from {least:g} to {largest:g}, are far from those of this operator for pictures in [-1, 1] "
        f"(up to {most:g}{noise}): {remedy}"
    )
