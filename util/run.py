"""A run's folder: what is written where, whole or not at all; and the random streams of a run."""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from util.errors import UserError
from util.files import write_whole
from util.logger import LOGGER
from util.metrics import psnr, ssim

PASSES = ("unet", "decoder_forward", "decoder_backward")
TRACE = ("step", "timestep", "stage", "iterations", "first_loss", "last_loss", "stop", *PASSES, "seconds")
PROGRESS_PICTURES = 8
METRICS = ("image", "sample", "psnr", "ssim", "baseline_psnr", "baseline_ssim", "seconds")


def random_stream(seed: int, image: str, purpose: str) -> np.random.RandomState:
    """Return the random numbers of one purpose for one image, the same whatever else is restored beside it."""
    return np.random.RandomState(np.frombuffer(_digest(seed, image, purpose), dtype=np.uint32))


def torch_stream(seed: int, image: str, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """As `random_stream`, for torch."""
    number = int.from_bytes(_digest(seed, image, purpose)[:8], "little", signed=True)
    return torch.Generator(device).manual_seed(number)


def _digest(*parts: Any) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def to_uint8(image: Tensor) -> np.ndarray:
    """Turn an image (1, C, H, W) or (C, H, W) in [-1, 1] into 8 bits (H, W, C), clipped and never stretched."""
    image = image.detach().reshape(image.shape[-3:]).float().cpu().clamp(-1, 1)
    return ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def score(truth: Tensor, image: Tensor) -> tuple[float, float]:
    """Return PSNR in decibels and SSIM of an image (1, 3, H, W) in [-1, 1], both as 8 bits, as they are written."""
    pair = to_uint8(truth) / 255, to_uint8(image) / 255
    return psnr(*pair), ssim(*pair)


class RunFolder:
    """The folder of a run.

    `input/`, `label/` and `recon/` hold one PNG for each restoration, of the same name in each: the measurement, the
    truth and the restoration. `label/<image>.safetensors` is the exact measurement with what the operator drew for it;
    `progress/<restoration>/` the evolving estimate and `trace.csv`; `metrics.csv` and `settings.yaml` are for all.

    Args:
        root: the folder; it is made when the first file is written.
        samples: restorations of each measurement.
    """

    def __init__(self, root: Path, samples: int = 1) -> None:
        self.root = root
        self.samples = samples
        self._metrics: list[dict[str, Any]] = []

    def name(self, image: str, sample: int) -> str:
        """Return the name of a restoration: the image's own, with `_s0`, `_s1`, ... where there are several."""
        return image if self.samples == 1 else f"{image}_s{sample}"

    def check(self) -> None:
        """Check that the folder can be written, without writing.

        Raises:
            UserError: it cannot.
        """
        there = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UserError(f"cannot write to {self.root}: {there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to {self.root}: no permission to write in {there}")

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write `settings.yaml`."""
        write_whole(self.root / "settings.yaml", yaml.safe_dump(dict(settings), sort_keys=False).encode())

    def write_restoration(
        self, image: str, sample: int, truth: Tensor, measurement: Tensor, restoration: Tensor
    ) -> None:
        """Write the three pictures of a restoration, each (1, C, H, W) in [-1, 1]."""
        name = self.name(image, sample)
        for folder, picture in (("input", measurement), ("label", truth), ("recon", restoration)):
            self.write_picture(folder, name, to_uint8(picture))

    def write_picture(self, folder: str, name: str, picture: np.ndarray) -> None:
        """Write 8-bit pixels (H, W, 3) or (H, W, 1) as `<folder>/<name>.png`."""
        buffer = io.BytesIO()
        Image.fromarray(picture.squeeze()).save(buffer, format="png")
        write_whole(self.root / folder / f"{name}.png", buffer.getvalue())

    def write_measurement(self, image: str, tensors: Mapping[str, Tensor], made_by: Mapping[str, Any]) -> None:
        """Write `label/<image>.safetensors`, with the settings that made it in its header."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        content = save(tensors, metadata={"made_by": json.dumps(made_by)})
        write_whole(self.root / "label" / f"{image}.safetensors", content)

    def write_trace(self, image: str, sample: int, events: Sequence[Any]) -> None:
        """Write what the sampler did (one dataclass instance for each event) as `trace.csv` beside the progress."""
        path = self.root / "progress" / self.name(image, sample) / "trace.csv"
        write_whole(path, _csv(TRACE, map(asdict, events)))

    def add_metrics(
        self, image: str, sample: int, score: tuple[float, float], baseline: tuple[float, float], seconds: float
    ) -> None:
        """Add a restoration to `metrics.csv`: (PSNR, SSIM) of itself and of the baseline, and the time it took."""
        self._metrics.append(dict(zip(METRICS, (image, sample, *score, *baseline, seconds), strict=True)))
        write_whole(self.root / "metrics.csv", _csv(METRICS, self._metrics))
        LOGGER.info("%s: %.2f dB, baseline %.2f dB, %.1f s", self.name(image, sample), score[0], baseline[0], seconds)

    def table(self) -> str:
        """Return the means over all restorations beside the baseline's, as text."""
        mean = {key: float(np.mean([row[key] for row in self._metrics])) for key in METRICS[2:]}
        return (
            f"{'':12s} {'PSNR/dB':>8s} {'SSIM':>7s}\n"
            f"{'baseline':12s} {mean['baseline_psnr']:8.2f} {mean['baseline_ssim']:7.3f}\n"
            f"{'restoration':12s} {mean['psnr']:8.2f} {mean['ssim']:7.3f}\n"
            f"{len(self._metrics)} restorations, {mean['seconds']:.1f} s each, in {self.root}"
        )


class Recorder:
    """Follows one restoration: keeps the sampler's events, and writes its estimate at a few steps as pictures.

    Used as a context manager around the restoration, whose duration is then in `seconds`.

    Args:
        run: where pictures go, as `progress/<name>/step_<step>.png`.
        name: the restoration's name.
        steps: sampling steps of the run.
        decode: latents (1, C, h, w) to images (1, 3, H, W) in [-1, 1].
    """

    def __init__(self, run: RunFolder, name: str, steps: int, decode: Callable[[Tensor], Tensor]) -> None:
        self.events: list[Any] = []
        self.seconds = 0.0
        self._run, self._name, self._decode = run, name, decode
        self._chosen = {round(part * (steps - 1) / (PROGRESS_PICTURES - 1)) for part in range(PROGRESS_PICTURES)}

    def __enter__(self) -> "Recorder":
        self.seconds = -time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter()

    def event(self, event: Any) -> None:
        """Keep an event of the sampler (see `TRACE` for its attributes)."""
        self.events.append(event)
        cells = {key: _cell(getattr(event, key)) for key in TRACE}
        LOGGER.debug("%s: %s", self._name, " ".join(f"{key}={cell}" for key, cell in cells.items() if cell))

    def estimate(self, latent: Tensor, step: int) -> None:
        """Write the estimate of the clean latent (1, C, h, w) after a step, if it is one of the chosen ones."""
        if step in self._chosen:
            self._run.write_picture(f"progress/{self._name}", f"step_{step:04d}", to_uint8(self._decode(latent)))


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(_cell(row[key]) for key in columns)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return format(value, ".6g") if isinstance(value, float) else str(value)


def read_measurement(folder: Path, image: str, made_by: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read back what `RunFolder.write_measurement` wrote: the measurement and what the operator drew.

    Raises:
        UserError: no such file, one that is damaged, or one that other settings made.
    """
    path = folder / f"{image}.safetensors"
    if not path.is_file():
        raise UserError(f"no measurement of {image!r} in {folder}: looked for {path.name}")
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("made_by", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable measurement: {error}") from error
    expected = json.loads(json.dumps(made_by))  # as a file gives it back: tuples are lists
    if found != expected:
        raise UserError(f"{path} is a measurement by other settings: {found}, where the task has {expected}")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise UserError(
                f"{path} is not a readable measurement: {key} holds NaN, infinity or {tensor.dtype} numbers"
            )
    return tensors
