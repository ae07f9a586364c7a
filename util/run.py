"""A run's folder: what is written where, whole or not at all; and the random streams of a run."""

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it appears complete or not at all: beside its place, flushed to disk, then renamed.

    Raises:
        UserError: it cannot be written there.
    """
    beside = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def to_uint8(image: Tensor) -> np.ndarray:
    """Turn an image (1, C, H, W) or (C, H, W) in [-1, 1] into 8 bits (H, W, C), clipped and never stretched."""
    image = image.detach().reshape(image.shape[-3:]).float().cpu().clamp(-1, 1)
    return ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


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

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write `settings.yaml`."""
        write_whole(self.root / "settings.yaml", yaml.safe_dump(dict(settings), sort_keys=False).encode())

    def write_picture(self, folder: str, name: str, picture: np.ndarray) -> None:
        """Write 8-bit pixels (H, W, 3) or (H, W, 1) as `<folder>/<name>.png`."""
        buffer = io.BytesIO()
        Image.fromarray(picture.squeeze()).save(buffer, format="png")
        write_whole(self.root / folder / f"{name}.png", buffer.getvalue())

    def write_measurement(self, image: str, tensors: Mapping[str, Tensor], operator: Mapping[str, Any]) -> None:
        """Write `label/<image>.safetensors`, with the operator's settings in its header."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        content = save(tensors, metadata={"operator": json.dumps(operator)})
        write_whole(self.root / "label" / f"{image}.safetensors", content)

    def write_trace(self, name: str, events: Sequence[Any]) -> None:
        """Write the sampler's events (dataclasses, all of one type) as `progress/<name>/trace.csv`."""
        if events:
            columns = [f.name for f in fields(events[0])]
            write_whole(self.root / "progress" / name / "trace.csv", _csv(columns, map(asdict, events)))

    def add_metrics(self, **row: Any) -> None:
        """Add a row to `metrics.csv`; the keywords are its columns, `METRICS`."""
        self._metrics.append(row)
        write_whole(self.root / "metrics.csv", _csv(METRICS, self._metrics))

    def table(self) -> str:
        """Return the means over all rows beside the baseline's, as text."""
        mean = {key: float(np.mean([row[key] for row in self._metrics])) for key in METRICS[2:]}
        return (
            f"{'':12s} {'PSNR/dB':>8s} {'SSIM':>7s}\n"
            f"{'baseline':12s} {mean['baseline_psnr']:8.2f} {mean['baseline_ssim']:7.3f}\n"
            f"{'restoration':12s} {mean['psnr']:8.2f} {mean['ssim']:7.3f}\n"
            f"{len(self._metrics)} restorations, {mean['seconds']:.1f} s each"
        )


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: format(v, ".6g") if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue().encode()


def read_measurement(folder: Path, image: str, operator: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read back what `RunFolder.write_measurement` wrote: the measurement and what the operator drew.

    Raises:
        UserError: no such file, one that is damaged, or one made by an operator with other settings.
    """
    path = folder / f"{image}.safetensors"
    if not path.is_file():
        raise UserError(f"no measurement of {image!r} in {folder}: looked for {path.name}")
    try:
        with safe_open(path, framework="pt") as file:
            made_by = json.loads((file.metadata() or {}).get("operator", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable measurement: {error}") from error
    if made_by != json.loads(json.dumps(operator)):
        raise UserError(f"{path} was made by the operator {made_by}, and the task has {dict(operator)}")
    return tensors


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def provenance(checkpoint: Path) -> dict[str, Any]:
    """Return what a result depends on besides its settings: versions, number of threads, the checkpoint's SHA-256."""
    packages = ("torch", "numpy", "scipy", "scikit-image", "pillow")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "checkpoint": {"path": str(checkpoint), "sha256": sha256(checkpoint)},
    }
