"""Figures of a run by which two people can find where their runs part: settings, weights, measurements, steps."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ldm_inverse.runs.manifest import flat
from scripts.evaluation.finished import FinishedRun, read_pixels
from util.errors import UserError

FINGERPRINT = "fingerprint.json"
EVENT = ("step", "stage", "iterations", "first_loss", "last_loss")
# Relative differences that rounding of float32 makes in a measurement, and in a loss after an optimisation.
EQUAL, ALIKE = 1e-5, 1e-3
SEEN = 0.004  # half of an 8-bit level's distance in [-1, 1], and less than a table of PSNR or SSIM shows


def fingerprint(run: FinishedRun, quality: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return a run's figures as what JSON holds.

    Of each image: mean and deviation of its measurement, of the clean estimate after each step and of the restoration;
    what each optimisation did; passes through the networks; ``quality``, by the image's name.
    """
    record = run.record
    about = {key: record.get(key) for key in ("checkpoint", "architecture", "versions", "device", "threads")}
    images = {name: {**_image(run, name, row["image"]), **quality.get(name, {})} for name, row in run.rows.items()}
    return {"settings": flat(record["settings"]), "seed": record["run"].get("seed"), **about, "images": images}


def _image(run: FinishedRun, name: str, image: str) -> dict[str, Any]:
    progress = run.folder / "progress" / name
    tensors = load_file(run.folder / "label" / f"{image}.safetensors")
    estimates = {path.stem.removeprefix("step_"): _moments(read_pixels(path)) for path in progress.glob("step_*.png")}
    with open(progress / "trace.csv", newline="") as file:
        events = [[row.get(key, "") for key in EVENT] for row in csv.DictReader(file)]
    return {
        "measurement": [float(tensors["y"].mean()), float(tensors["y"].std())],
        "events": events,
        "estimates": dict(sorted(estimates.items())),
        "restoration": _moments(read_pixels(run.folder / "recon" / f"{name}.png")),
        "passes": run.passes(name),
    }


def _moments(pixels: np.ndarray) -> list[float]:
    """Return mean and deviation of 8-bit pixels, in [-1, 1]."""
    values = pixels.astype(np.float64) / 127.5 - 1
    return [round(float(values.mean()), 6), round(float(values.std()), 6)]


def read_fingerprint(path: Path) -> dict[str, Any]:
    """Read a fingerprint.

    Raises:
        UserError: the file cannot be read or is none.
    """
    try:
        found = json.loads(path.read_bytes())
        if not all(isinstance(found[key], dict) for key in ("settings", "images", "checkpoint", "versions")):
            raise TypeError("no fingerprint of a run")
        for image in found["images"].values():
            pairs = [image["measurement"], image["restoration"], *image["estimates"].values()]
            numbers = [number for mean, deviation in pairs for number in (mean, deviation)]
            numbers += [image[key] for key in ("psnr", "ssim") if key in image]
            if not all(isinstance(number, int | float) for number in numbers):
                raise TypeError("text in place of a number")
            _ = [(step, stage, float(last or 0)) for step, stage, _, _, last in image["events"]]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a fingerprint written by scripts/verify.py: {error!r}") from error
    return found


def compare(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Compare two fingerprints.

    Returns:
        What differs, a line each, causes before effects; and whether both were to be the same run: of the same
        settings, seed, weights and measurements. What then still differs is arithmetic.
    """
    causes = [*_settings(mine, theirs), *_measurements(mine, theirs)]
    circumstances = [
        f"{key}: {mine.get(key)} here, {theirs.get(key)} there"
        for key in ("versions", "device", "threads")
        if mine.get(key) != theirs.get(key)
    ]
    effects = [
        line
        for name, image in mine["images"].items()
        if name in theirs["images"]
        for line in _effects(name, image, theirs["images"][name])
    ]
    return [*causes, *circumstances, *effects], not causes


def _settings(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*mine["settings"], *theirs["settings"]]):
        values = [found["settings"].get(key, "(not set)") for found in (mine, theirs)]
        if values[0] != values[1] and key != "data.root":
            yield f"{key}: {values[0]} here, {values[1]} there"
    for key in ("seed", "checkpoint", "architecture"):
        if mine.get(key) != theirs.get(key):
            yield f"{key}: {mine.get(key)} here, {theirs.get(key)} there"


def _measurements(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    if mine["images"].keys() != theirs["images"].keys():
        yield f"images: {', '.join(mine['images'])} here, {', '.join(theirs['images'])} there"
    for name, image in mine["images"].items():
        other = theirs["images"].get(name)
        if other and not np.allclose(image["measurement"], other["measurement"], rtol=EQUAL, atol=EQUAL):
            yield f"{name}: other pictures or draws: mean and deviation of the measurement differ"


def _effects(name: str, image: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Yield where two restorations of an image part, and how far apart they end."""
    if len(image["events"]) != len(other["events"]):
        yield f"{name}: {len(image['events'])} events here, {len(other['events'])} there"
    for own, theirs in zip(image["events"], other["events"], strict=False):
        losses = [float(event[-1] or 0) for event in (own, theirs)]
        if own[:3] != theirs[:3] or not math.isclose(*losses, rel_tol=ALIKE):
            yield f"{name}: alike until step {own[0]}, {own[1]}: last loss {own[-1]} here, {theirs[-1]} there"
            break
    for step, moments in image["estimates"].items():
        there = other["estimates"].get(step)
        if there is None or not np.allclose(moments, there, rtol=0, atol=SEEN):
            yield f"{name}: estimate of step {step}: mean and deviation {moments} here, {there} there"
            break
    for key in ("psnr", "ssim"):
        if key in image and key in other and not math.isclose(image[key], other[key], abs_tol=SEEN):
            yield f"{name}: {key} {image[key]:.3f} here, {other[key]:.3f} there"
