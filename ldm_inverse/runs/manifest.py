"""The record beside a run's results: its settings, and the files and versions that made it."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict

from data.picture_encoding import SaveFormat
from ldm.checkpoints.digest import checkpoint_sha256
from ldm_inverse.runs.settings import RunSettings
from model_loader import model_config, resolve_model
from util.errors import UserError
from util.settings import Count, Flag, Settings, Text, Whole, read, whole
from util.yaml import load_yaml

# What decides a result, and must be the same in all of a folder.
DECIDING = (
    *("settings.", "run.measurement", "run.resize", "run.seed", "run.n_samples_per_class"),
    "run.save_format",
    *("checkpoint.", "architecture.", "plugins.", "threads"),
)
# Of a run's folder: 1 had the measurements' pictures in input/ and the truths in label/.
FORMAT = 2
CIRCUMSTANCES = ("device", "versions.", "run.batch_size")  # decide last digits, and nobody can go back to them easily


Threads = Annotated[int, whole(1, 1024)]


class RecordedArguments(Settings):
    """The arguments that are written down: neither those that leave every result as it is nor those that are settings.

    Attributes are the command's arguments of these names (`ldm_inverse.runs.arguments`).
    """

    task_config: Path
    preset: Text | None = None
    ldm_config: Path | None = None
    diffusion_config: Path
    measurement: Path | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    resize: Literal["error", "center_crop", "resize", "pad"] = "error"
    limit: Count | None = None
    skip_bad: Flag = False
    seed: Whole = 0
    n_samples_per_class: Count = 1
    save_format: SaveFormat = "png"
    batch_size: Count = 1
    plugin: tuple[Text, ...] = ()


class Record(Settings):
    """The part that every `settings.yaml` has; a run's holds more."""

    model_config = ConfigDict(extra="allow")

    format: Annotated[int, whole(1, FORMAT)] = 1
    settings: dict[str, Any]
    run: dict[str, Any]
    threads: Threads
    checkpoint: dict[str, Any]
    device: Text
    versions: dict[str, Any]


def record(
    arguments: RecordedArguments,
    settings: RunSettings,
    device: torch.device,
    threads: int | None = None,
    plugins: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what `settings.yaml` says of a run on a device, as plain values.

    Args:
        arguments: those that are written down; a `Request` has them.
        settings: of the run.
        device: where the model is.
        threads: None where they are those of the folder, or else torch's own.
        plugins: the SHA-256 of the files ``arguments.plugin``.
    """
    run = arguments.model_dump(mode="json", include=set(RecordedArguments.model_fields))
    return {
        "format": FORMAT,
        "settings": settings.recorded(),
        "run": {name: run[name] for name in RecordedArguments.model_fields},
        "threads": threads,
        **({"plugins": {"sha256": list(plugins)}} if plugins else {}),
        **made_by(arguments.ldm_config, arguments.diffusion_config, device),
    }


def made_by(architecture: Path | None, checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """Return the part of a record that says of which model, on what and by which versions results are.

    Args:
        architecture, checkpoint: the model, as `model_loader.model_config` takes them.
        device: where it computes.
    """
    model = resolve_model(checkpoint)
    packages = ("torch", "numpy", "scipy", "scikit-image", "pillow")
    return {
        "checkpoint": {"sha256": checkpoint_sha256(model)},
        "architecture": {"sha256": _sha256(architecture.read_bytes() if architecture else _own_config(model))},
        "device": device_name(device),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def device_name(device: torch.device) -> str:
    """Return a card's own name, or what kind of device it is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a `settings.yaml` back; None when there is none.

    Raises:
        UserError: it is not a run's.
    """
    if not path.exists():
        return None
    found = load_yaml(path)
    try:
        read(Record, found)
    except UserError as error:
        raise UserError(f"{path} is not the record of a run: {str(error).splitlines()[0]}") from error
    return found


def picture_folders(record: Mapping[str, Any]) -> dict[str, str]:
    """Return which of a run's folders has the pictures of the truth, the measurement and the restoration."""
    truth, measurement = ("input", "label") if record.get("format", 1) > 1 else ("label", "input")
    return {"truth": truth, "measurement": measurement, "restoration": "recon"}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], keys: tuple[str, ...] = DECIDING) -> list[str]:
    """Return in what an earlier run's record differs from another's, a line each, as far as ``keys`` (prefixes) say."""
    before, now = flat(found), flat(json.loads(json.dumps(wanted)))
    if now["threads"] is None:
        now["threads"] = before.get("threads")
    return [
        f"{key}: {before.get(key, '(not set)')} there, {now.get(key, '(not set)')} now"
        for key in dict.fromkeys([*before, *now])
        if key.startswith(keys) and not _is_same(before.get(key, "(not set)"), now.get(key, "(not set)"))
    ]


def _is_same(before: Any, now: Any) -> bool:
    """Tell whether two values are equal, or two spellings of one file or folder."""
    try:
        return before == now or (isinstance(before, str) and isinstance(now, str) and os.path.samefile(before, now))
    except (OSError, ValueError):
        return False


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted keys; tuples become lists, as a file gives them back."""
    if not isinstance(tree, Mapping):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    items = ((f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items())
    return {key: leaf for path, value in items for key, leaf in flat(value, path).items()}


def recorded_arguments(folder: Path) -> dict[str, Any]:
    """Return the arguments that repeat the run in a folder.

    Raises:
        UserError: there is no run, or its record holds what cannot be.
    """
    path = folder / "settings.yaml"
    found = read_record(path)
    if found is None:
        raise UserError(f"no run in {folder}: looked for settings.yaml")
    given = {name: value for name, value in found["run"].items() if name in RecordedArguments.model_fields}
    if given.get("batch_size", 1) is None:  # an older record does not say
        del given["batch_size"]
    arguments = read(RecordedArguments, given, f"{path}: run")
    # Code is never a default.
    return {**dict(arguments), "threads": found["threads"], "plugin": []}


def recorded_plugins(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each plugin of the run in a folder, by its path.

    Raises:
        UserError: the record does not say.
    """
    found = read_record(folder / "settings.yaml") or {}
    try:
        paths, digests = found["run"].get("plugin") or [], found.get("plugins", {}).get("sha256", [])
        return dict(zip(map(str, paths), map(str, digests), strict=True))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: settings.yaml does not say which plugins the run had: {error}") from error


def _own_config(model: Path) -> bytes:
    """Return the configuration that a model brings, as text that is equal for equal ones."""
    return json.dumps(model_config(None, model), sort_keys=True).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
