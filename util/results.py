"""What came of each restoration: a small file for each, and the tables that are made of them."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError

# Passes through the networks.
PASSES = ("unet", "unet_backward", "decoder_forward", "decoder_backward", "encoder_forward", "encoder_backward")
METRICS = ("image", "sample", "psnr", "ssim", "baseline_psnr", "baseline_ssim", *PASSES, "seconds")
# Without a truth: the root mean square of y - A(x), and of the noise (of a baseline, again of y - A(x)).
MEASURED = ("image", "sample", "residual", "noise", "baseline_residual", *PASSES, "seconds")
FAILED = ("image", "sample", "step", "reason")


class Results:
    """The files `<folder>/<restoration>.json`, one for each that is finished or has failed.

    A file holds a row of `metrics.csv` (`METRICS`, or `MEASURED` where there is no truth), or one of `failed.csv`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, dict[str, Any]] = {}

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the rows by the restorations' names: all that any process has written by now.

        Raises:
            UserError: a file is damaged.
        """
        for file in os.listdir(self.folder) if self.folder.is_dir() else ():
            name, ending = os.path.splitext(file)
            if ending == ".json" and name not in self._rows:
                self._rows[name] = _read(self.folder / file)
        return self._rows

    def has(self, name: str) -> bool:
        """Tell whether a restoration is finished, or has failed."""
        return name in self._rows or (self.folder / f"{name}.json").is_file()

    def forget(self, name: str) -> None:
        """Delete what is known of a restoration."""
        self._rows.pop(name, None)
        (self.folder / f"{name}.json").unlink(missing_ok=True)


def encode(row: Mapping[str, Any]) -> bytes:
    """Return a row as the content of its file."""
    return json.dumps(row, indent=1).encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_bytes())
        # Results of before a network's passes were counted have no number for it.
        return {column: row.get(column) if column in PASSES else row[column] for column in columns_of(row)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it, and its restoration is made again ({error!r})") from error


def restoration_name(image: str, sample: int | str, samples: int) -> str:
    """Return a restoration's name: the image's own, with `_s0`, `_s1`, ... where there are several (``samples``)."""
    return image if samples == 1 else f"{image}_s{sample}"


def columns_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of the table that a row belongs to."""
    return FAILED if has_failed(row) else MEASURED if "residual" in row else METRICS


def has_failed(row: Mapping[str, Any]) -> bool:
    """Tell a row of `failed.csv` from one of `metrics.csv`."""
    return "reason" in row


def line(row: Mapping[str, Any]) -> str:
    """Return what came of one restoration as a line of text."""
    if "psnr" in row:
        return f"{row['psnr']:.2f} dB, baseline {row['baseline_psnr']:.2f} dB, {row['seconds']:.1f} s"
    noise = cell(row["noise"]) or "not known"
    baseline = row["baseline_residual"]
    return f"residual {row['residual']:.4f}, noise {noise}, baseline {baseline:.4f}, {row['seconds']:.1f} s"


def csv_of(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV under their columns' names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(cell(row[key]) for key in columns)
    return text.getvalue().encode()


def cell(value: Any) -> str:
    """Return a value as it stands in a CSV: floats with six digits, nothing for None."""
    if value is None:
        return ""
    return format(value, ".6g") if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the means of rows with metrics beside the baseline's, as text."""
    if not rows:
        return "no restorations"
    if "residual" in rows[0]:
        return _residuals(rows)
    known = {key: [row[key] for row in rows if row[key] is not None] for key in METRICS[2:]}
    mean = {key: float(np.mean(values)) if values else None for key, values in known.items()}
    passes = {key: f"{mean[key]:.10g}" if mean[key] is not None else "uncounted" for key in PASSES}
    unet, decoder, encoder = (
        f"{passes[f]} forward and {passes[b]} backward" for f, b in zip(PASSES[::2], PASSES[1::2], strict=True)
    )
    unet = unet if mean["unet_backward"] else passes["unet"]
    encoder = f", encoder {encoder}" if mean["encoder_forward"] else ""
    return (
        f"{'':12s} {'PSNR/dB':>8s} {'SSIM':>7s}\n"
        f"{'baseline':12s} {mean['baseline_psnr']:8.2f} {mean['baseline_ssim']:7.3f}\n"
        f"{'restoration':12s} {mean['psnr']:8.2f} {mean['ssim']:7.3f}\n"
        f"{len(rows)} restorations, each {mean['seconds']:.1f} s, and passes of the networks: "
        f"UNet {unet}, decoder {decoder}{encoder}"
    )


def _residuals(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean residuals of rows without a truth beside the noise level, as text."""
    known = [row["noise"] for row in rows if row["noise"] is not None]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("residual", "baseline_residual", "seconds")}
    return (
        f"{'':12s} {'residual':>8s}   (root mean square of y - A(x); no truth, so no PSNR)\n"
        f"{'baseline':12s} {mean['baseline_residual']:8.4f}\n"
        f"{'restoration':12s} {mean['residual']:8.4f}\n"
        f"{'noise':12s} {f'{np.mean(known):8.4f}' if known else 'not known'}\n"
        f"{len(rows)} restorations, {mean['seconds']:.1f} s each"
    )
