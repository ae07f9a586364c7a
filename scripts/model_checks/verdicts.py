"""Verdicts on the measures, in words."""

import math
from collections.abc import Sequence
from typing import NamedTuple

GOOD_PSNR, POOR_PSNR = 26.0, 20.0  # decibels; published first stages of f = 8 reach 22 to 25
FEW_CODES, FEWEST_CODES = 0.2, 0.02  # share of those that could be in use
GOOD_ERROR = 0.9  # relative to the best linear estimate
SAME_SCALE = 1.5  # factor up to which pictures of another kind than the prior's may account for


class Verdict(NamedTuple):
    """A line of the report.

    Attributes:
        about: what was looked at.
        text: what was found, and what that means.
        good: whether the model can be used, as far as this goes.
    """

    about: str
    text: str
    good: bool = True


def on_round_trip(psnr: Sequence[float]) -> Verdict:
    """Judge the first stage by the PSNR of pictures that went through it."""
    mean = sum(psnr) / len(psnr)
    if mean >= GOOD_PSNR:
        judgement = "fine"
    elif mean >= POOR_PSNR:
        judgement = "details are lost, as is usual where f = 8"
    else:
        judgement = "wrong first stage, wrong weights, or pictures unlike those it was trained on?"
    text = f"{mean:.1f} dB over {len(psnr)} pictures, the worst {min(psnr):.1f}: {judgement}"
    return Verdict("round trip", text, mean >= POOR_PSNR)


def on_codebook(used: int, entries: int, positions: int) -> Verdict:
    """Judge a codebook by how many of its entries the pictures use."""
    share = used / min(entries, positions)
    judgement = "fine"
    if share < FEW_CODES:
        judgement = "few; more pictures may use more" if share >= FEWEST_CODES else "wrong first stage or weights?"
    text = f"{used:,} of {entries:,} entries in use ({used / entries:.0%}) at {positions:,} positions: {judgement}"
    return Verdict("codebook", text, share >= FEWEST_CODES)


def is_apart(ratio: float) -> bool:
    """Tell whether samples and pictures differ more in spread than two kinds of pictures do."""
    return math.isfinite(ratio) and not 1 / SAME_SCALE <= ratio <= SAME_SCALE


def on_prior(error: float, rescaled: float, ratio: float, scale: float, scale_factor: float) -> list[Verdict]:
    """Judge the prior, and the scale of what it is given.

    Args:
        error: `relative_error` on the pictures' latents.
        rescaled: the same on these latents times ``scale``.
        ratio: spread of the prior's own samples by that of the pictures' latents.
        scale: where the error is smallest, around ``ratio``; 1 where that is near 1.
        scale_factor: the model's.
    """
    if not (math.isfinite(error) and math.isfinite(ratio)):
        return [Verdict("prior", "its samples or noise estimates are not finite: wrong weights?", False)]
    wrong_scale = is_apart(ratio) and rescaled < min(GOOD_ERROR, 0.8 * error)
    known = f"noise estimate's error on these pictures is {error:.2f} of that without knowledge of them"
    scales = f"the samples spread {ratio:.2f} times as far as the pictures' latents"
    if wrong_scale:
        better = f"{rescaled:.2f} with scale_factor {scale_factor * scale:.3g}"
        wrong = (
            f"{scales}: wrong scale_factor ({scale_factor:.3g})? The pictures suggest about {scale_factor * scale:.3g}"
        )
        return [Verdict("prior", f"{known}, {better}", True), Verdict("scale", wrong, False)]
    if error >= GOOD_ERROR:
        return [Verdict("prior", f"{known}: samples are noise, or of something else: wrong weights?", False)]
    judgement = "pictures unlike those it was trained on?" if is_apart(ratio) else "fine"
    return [Verdict("prior", f"{known}: fine"), Verdict("scale", f"{scales}: {judgement}")]


def on_average(apart: float, raw: float, averaged: float) -> Verdict:
    """Compare the moving average of the UNet's weights with the weights, by their `relative_error`."""
    text = f"{apart:.1%} from the raw weights; error {averaged:.3f}, theirs {raw:.3f}"
    if averaged < 0.99 * raw:
        return Verdict("average", f"{text}: better (use_ema: true in the configuration takes it)")
    return Verdict(
        "average", f"{text}: " + ("no better" if averaged < 1.05 * raw else "worse; was the training short?")
    )
