"""What a run was asked to do and made by: the record beside its results, and what is told of it beforehand."""

import hashlib
import json
import platform
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from util.errors import UserError
from util.settings import Settings
from util.yaml_files import load_yaml

if TYPE_CHECKING:
    import torch

# Arguments that are written down: neither those that leave every result as it is nor those that are in the settings.
ARGUMENTS = (
    *("task_config", "preset", "ldm_config", "diffusion_config", "measurement", "device", "resize", "limit"),
    *("skip_bad", "seed", "n_samples_per_class", "batch_size", "plugin"),
)
# What decides a result, and must be the same in all of a folder.
DECIDING = (
    *("settings.", "run.measurement", "run.resize", "run.seed", "run.n_samples_per_class"),
    *("checkpoint.", "architecture.", "plugins.", "threads"),
)
CIRCUMSTANCES = ("device", "versions.", "run.batch_size")  # decide last digits, and nobody can go back to them easily


def record(args: Namespace, settings: Settings, device: "torch.device", plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Return what `settings.yaml` says of a run on a device, as plain values.

    ``plugins`` are the SHA-256 of the files `args.plugin`. ``threads`` is None where the arguments leave it to what is
    in the folder, or else to torch.
    """
    run = {key: getattr(args, key) for key in ARGUMENTS}
    return {
        "settings": asdict(settings),
        "run": {key: str(value) if isinstance(value, Path) else value for key, value in run.items()},
        "threads": args.threads,
        **({"plugins": {"sha256": list(plugins)}} if plugins else {}),
        **made_by(args, device),
    }


def made_by(args: Namespace, device: "torch.device") -> dict[str, Any]:
    """Return the part of a record that says of which model, on what and by which versions results are."""
    packages = ("torch", "numpy", "scipy", "scikit-image", "pillow")
    return {
        "checkpoint": {"sha256": sha256(args.diffusion_config)},
        "architecture": {"sha256": sha256(args.ldm_config)},
        "device": device_name(device),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def device_name(device: "torch.device") -> str:
    """Return a card's own name, or what kind of device it is."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a `settings.yaml` back; None when there is none.

    Raises:
        UserError: it is not a run's.
    """
    if not path.exists():
        return None
    found = load_yaml(path)
    parts = {"settings": dict, "run": dict, "versions": dict, "checkpoint": dict, "threads": int, "device": str}
    if not all(isinstance(found.get(key), kind) for key, kind in parts.items()):
        raise UserError(f"{path} is not the record of a run: give another folder")
    return found


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], keys: tuple[str, ...] = DECIDING) -> list[str]:
    """Return in what an earlier run's record differs from another's, a line each, as far as ``keys`` (prefixes) say."""
    before, now = flat(found), flat(json.loads(json.dumps(wanted)))
    if now["threads"] is None:
        now["threads"] = before.get("threads")
    return [
        f"{key}: {before.get(key, '(not set)')} there, {now.get(key, '(not set)')} now"
        for key in dict.fromkeys([*before, *now])
        if key.startswith(keys) and before.get(key, "(not set)") != now.get(key, "(not set)")
    ]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted keys; tuples become lists, as a file gives them back."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    items = ((f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items())
    return {key: leaf for path, value in items for key, leaf in flat(value, path).items()}


def recorded_arguments(folder: Path) -> dict[str, Any]:
    """Return the arguments that repeat the run in a folder, as text or plain values.

    Raises:
        UserError: there is no run.
    """
    found = read_record(folder / "settings.yaml")
    if found is None:
        raise UserError(f"no run in {folder}: looked for settings.yaml")
    recorded = {key: found["run"].get(key) for key in ARGUMENTS if key != "plugin"}  # code is never a default
    recorded["batch_size"] = recorded["batch_size"] or 1  # older records do not say
    return recorded | {"threads": found["threads"]}


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
