"""What a run was asked to do and made by: the record beside its results, and what is told of it beforehand."""

import hashlib
import platform
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from util.settings import Settings

CONTROL = ("dry_run", "debug", "verbose", "quiet")  # arguments that leave every result as it is


def record(args: Namespace, settings: Settings, device: torch.device) -> dict[str, Any]:
    """Return what `settings.yaml` says of a run on a device: settings, arguments and `provenance`, as plain values."""
    run = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    run = {key: value for key, value in run.items() if key not in CONTROL}
    run["settings"] = [f"{key}={value}" for key, value in args.settings]
    return {"settings": asdict(settings), "run": run, **provenance(args.diffusion_config, device)}


def plan(settings: Settings, pictures: Sequence[tuple[str, Path]], samples: int, passes: Mapping[str, int]) -> str:
    """Return settings, inputs and cost as text.

    Args:
        settings: with every default filled in.
        pictures: (name, path) of each.
        samples: restorations of each.
        passes: what a restoration takes at most, by the name of the network or operator.
    """
    count = len(pictures) * samples
    lines = [yaml.safe_dump(asdict(settings), sort_keys=False)]
    lines += [f"{len(pictures)} pictures:", *(f"  {name}  ({str(path)!r})" for name, path in pictures)]
    lines += ["", "passes, at most (optimisations may stop early):"]
    for what, number in passes.items():
        lines.append(f"  {what:32s} {number:>8,} for a restoration, {number * count:>12,} for all {count}")
    return "\n".join(lines)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def provenance(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """Return what a result depends on besides its settings: versions, device and threads, the checkpoint's SHA-256."""
    packages = ("torch", "numpy", "scipy", "scikit-image", "pillow")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "checkpoint": {"path": str(checkpoint), "sha256": sha256(checkpoint)},
    }
