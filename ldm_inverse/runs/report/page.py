"""A run's folder as a page to look at: `report.html`, one file without a network, in any browser."""

import base64
import csv
import hashlib
import json
import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ldm_inverse.runs.manifest import flat, picture_folders, read_record
from ldm_inverse.runs.report import INLINED_MB
from ldm_inverse.runs.results import FAILED, FAR, Results, restoration_name, text_of
from util.errors import UserError

DRAWN = {
    "estimate": "progress/{}/estimate.webp",
    "residual": "progress/{}/residual.svg",
}
TYPES = {".png": "image/png", ".webp": "image/webp", ".svg": "image/svg+xml"}
EVENTS = ("step", "stage", "iterations", "first_loss", "last_loss", "target", "stop")


def report(folder: Path, inlined_mb: float = INLINED_MB, where: Path | None = None) -> bytes:
    """Return the page of a run's folder, made of its tables, its settings and what is written of each restoration.

    Args:
        folder: the run's.
        inlined_mb: the first pictures, up to so many megabytes, become part of the page; further ones are read from
            the folder.
        where: the folder in which the page will lie; None is the run's own.

    Raises:
        UserError: the folder holds no run, or a file of it is damaged.
    """
    record = read_record(folder / "settings.yaml")
    if record is None:
        raise UserError(f"{folder} holds no run: looked for settings.yaml")
    Results(folder / "results").read()  # what is damaged is told, and not passed over
    samples = record["run"].get("n_samples_per_class", 1)
    patterns = {kind: f"{own}/{{}}.png" for kind, own in picture_folders(record).items()} | DRAWN
    columns, rows = _table(folder / "metrics.csv")
    failure_columns, failures = _table(folder / "failed.csv")
    budget = int(inlined_mb * 1e6)
    links = quote(os.path.relpath(folder, where or folder))
    restorations = []
    for row in rows:
        name = _name(folder, row, samples)
        restorations.append(_restoration(folder, name, row, patterns, budget, links))
        budget -= restorations[-1].pop("bytes")
    apart = sum(not row["inlined"] for row in restorations)
    return _page(
        {
            "title": folder.resolve().name,
            "subtitle": _subtitle(record),
            "notes": [f"The pictures of {apart} restorations are not in this file but beside it."] if apart else [],
            "columns": [column for column in columns if column != "image" and (column != "sample" or samples > 1)],
            "rows": restorations,
            "event_columns": EVENTS,
            "far": FAR,
            "failure_columns": failure_columns or FAILED,
            "failures": [list(row.values()) for row in failures],
            "settings": [[key, _text(value)] for key, value in flat(record).items()],
        }
    )


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return a CSV's columns and rows; none where the file is missing."""
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8").splitlines(), restval="")
        rows = [{key: text_of(value) for key, value in row.items() if key is not None} for row in reader]
        return list(reader.fieldnames or ()), rows
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _name(folder: Path, row: Mapping[str, str], samples: int) -> str:
    """Return the name of the restoration that a row of the table is of."""
    if "image" not in row:
        raise UserError(f"{folder / 'metrics.csv'} is not the table of a run: it has no column image")
    return restoration_name(row["image"], row.get("sample", ""), samples)


def _restoration(
    folder: Path, name: str, row: Mapping[str, str], patterns: Mapping[str, str], budget: int, links: str
) -> dict[str, Any]:
    """Return what the page shows of a restoration; ``bytes`` is its part of the budget.

    Args:
        folder: the run's.
        name: the restoration's.
        row: of the table.
        patterns: its pictures' paths by their kind, with ``{}`` for the name.
        budget: bytes that may still become part of the page.
        links: what comes before the paths of pictures that do not.
    """
    paths = {kind: pattern.format(name) for kind, pattern in patterns.items()}
    paths["spread"] = f"spread/{row['image']}_std.png"  # of all restorations of the image
    sizes = {kind: (folder / path).stat().st_size for kind, path in paths.items() if (folder / path).is_file()}
    inlined = sum(sizes.values()) <= budget
    pictures = {kind: _inline(folder / paths[kind]) if inlined else f"{links}/{quote(paths[kind])}" for kind in sizes}
    found = {"name": name, "values": dict(row), "pictures": pictures, "inlined": inlined}
    if inlined:
        found["events"] = _events(folder / "progress" / name / "trace.csv")
    return found | {"bytes": sum(sizes.values()) if inlined else 0}


def _inline(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(content).decode()}"


def _events(trace: Path) -> list[list[str]]:
    """Return the optimisations of a trace, each with its `EVENTS`; what is missing is empty."""
    rows = _table(trace)[1]
    return [[row.get(key, "") for key in EVENTS] for row in rows if row.get("iterations", "") not in ("", "0")]


def _subtitle(record: Mapping[str, Any]) -> str:
    """Return in a line what was done: operator, noise, sampler, preset, seed."""
    found = {**flat(record["settings"]), **record["run"]}
    found["model"] = Path(str(found.get("ldm_config") or found.get("diffusion_config") or "")).stem or None
    patterns = {
        "measurement.operator.name": "{}",
        "measurement.noise.name": "{} noise",
        "measurement.noise.sigma": "sigma {}",
        "conditioning.main_sampler": "{}",
        "ddim_steps": "{} steps",
        "preset": "preset {}",
        "seed": "seed {}",
        "model": "model {}",
    }
    return " · ".join(text.format(found[key]) for key, text in patterns.items() if found.get(key) is not None)


def _text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _page(data: Mapping[str, Any]) -> bytes:
    """Return the template with its style, its script and the data in their places."""
    template, style, script = (_beside(ending) for ending in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # In a script element only "<" can begin something else; JSON may write it so.
    parts = {
        "title": escape(data["title"]),
        "style": style,
        "script": script,
        "script_hash": f"'sha256-{digest}'",  # the browser is told to run this script and no other
        "data": json.dumps(data).replace("<", "\\u003c"),
    }
    return re.sub(r"<!--(\w+)-->", lambda place: parts[place[1]], template).encode()


def _beside(ending: str) -> str:
    return Path(__file__).with_suffix(f".{ending}").read_text(encoding="utf-8")
