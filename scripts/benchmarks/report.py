"""The benchmark's rows, as JSON and as a table."""

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.text_tables import markdown_table
from util.files import write_whole


@dataclass(frozen=True)
class Row:
    """One part of a restoration in one mode.

    Attributes:
        part: what was measured.
        mode: how the networks computed; "" where none does.
        unit: of `value` and `plain`: "s" or "MB".
        value: median, in this mode.
        plain: the same of the plain rendering in the same run; None where there is none.
        fraction: of the operations a second that the machine attains in this number format.
    """

    part: str
    mode: str
    unit: str
    value: float
    plain: float | None = None
    fraction: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better than plain."""
        return None if self.plain is None else self.plain / self.value


def rows_of(
    part: str,
    medians: Mapping[str, float],
    plain: str,
    unit: str = "s",
    flop: Mapping[str, int] | None = None,
    attainable: Mapping[str, float] | None = None,
) -> list[Row]:
    """Return a row for each mode of a part but the plain one.

    Args:
        part: what was measured.
        medians: of each mode, the plain one included, from the same rounds.
        plain: which one that is.
        unit: as `Row.unit`.
        flop: floating-point operations that each mode does for the part.
        attainable: operations a second of each mode, at best.
    """
    rows = []
    for mode, value in medians.items():
        if mode != plain:
            fraction = flop[mode] / value / attainable[mode] if flop and attainable else None
            rows.append(Row(part, mode, unit, value, medians[plain], fraction))
    return rows


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "system": platform.system()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def as_json(about: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """Return machine, settings and rows as JSON."""
    return json.dumps({**about, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}, indent=1) + "\n"


def as_markdown(about: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """Return a sentence about the run and a Markdown table."""
    head = ["part", "mode", "this code", "plain", "ratio", "of attainable"]
    body = [
        [
            row.part,
            row.mode,
            _quantity(row.value, row.unit),
            _quantity(row.plain, row.unit),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.fraction is None else f"{row.fraction:.0%}",
        ]
        for row in rows
    ]
    return f"{sentence(about)}\n\n{markdown_table(head, body)}"


def sentence(about: Mapping[str, Any]) -> str:
    """Return machine and settings in a line."""
    return ", ".join(f"{key}: {value}" for key, value in about.items())


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return (
        f"{value * 1e3:.3g} ms" if unit == "s" and value < 1 else f"{value:.3g} s" if unit == "s" else f"{value:.0f} MB"
    )


def write(folder: Path, name: str, text: str) -> None:
    """Write one of the benchmark's files."""
    write_whole(folder / name, text.encode())
