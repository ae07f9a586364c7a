"""Outcomes of restorations: a small file for each, and the tables made of them."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError
from util.files import version_of

# Passes through the networks.
PASSES = ("unet", "unet_backward", "decoder_forward", "decoder_backward", "encoder_forward", "encoder_backward")
# The residual, the root mean square of y - A(x) over the entries that are measured, in units of the noise; None where
# the noise's level is not known, or 0.
RATIO = "residual_per_noise"
METRICS = ("image", "sample", "psnr", "ssim", "baseline_psnr", "baseline_ssim", *PASSES, "seconds", RATIO)
# Without a truth: the residual, the deviation of the noise, and the baseline's residual.
MEASURED = ("image", "sample", "residual", "noise", "baseline_residual", *PASSES, "seconds", RATIO)
INPUTS = "inputs"  # the digest of what was read, beside a row (`ldm_inverse.runs.inputs`)
FAILED = ("image", "sample", "step", "reason")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
FAR = 3.0  # times the noise, or a third of it: a residual beyond these is told


class Results:
    """The files `<folder>/<restoration>.json`, one for each that is finished or has failed.

    A file holds a row of `metrics.csv` (`METRICS`, or `MEASURED` where there is no truth), or one of `failed.csv`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}  # each row with the version of its file

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the rows by the restorations' names: all that any process has written by now.

        A file is read once for each version of it: another process may forget a result, and write it anew.

        Raises:
            UserError: a file is damaged.
        """
        found = {}
        for entry in os.scandir(self.folder) if self.folder.is_dir() else ():
            name, ending = os.path.splitext(entry.name)
            if ending == ".json":
                with suppress(FileNotFoundError):  # forgotten since it was listed
                    version, known = version_of(entry), self._known.get(name)
                    is_same = known is not None and known[0] == version
                    found[name] = known if known and is_same else (version, _read(self.folder / entry.name))
        self._known = found
        return {name: row for name, (_, row) in found.items()}

    def row(self, name: str) -> dict[str, Any] | None:
        """Return the row of one restoration; None where it is neither finished nor has failed.

        Raises:
            UserError: its file is damaged.
        """
        try:
            return _read(self.folder / f"{name}.json")
        except FileNotFoundError:
            return None

    def has(self, name: str) -> bool:
        """Tell whether a restoration is finished, or has failed."""
        return (self.folder / f"{name}.json").is_file()

    def forget(self, name: str) -> None:
        """Delete what is known of a restoration."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)


def encode(row: Mapping[str, Any]) -> bytes:
    """Return a row as the content of its file."""
    return json.dumps(row, indent=1).encode()


def _read(path: Path) -> dict[str, Any]:
    """Return the row in a file; FileNotFoundError where there is no file, and UserError where it is damaged."""
    try:
        row = json.loads(path.read_bytes())
        if not isinstance(row, dict) or not all(_may_be(column, value) for column, value in row.items()):
            raise TypeError("a value of the wrong type")
        if path.stem not in (row["image"], restoration_name(row["image"], row["sample"], 2)):
            raise ValueError(f"it is of {row['image']}")
        # Results of earlier versions have no number for what was not counted then.
        optional = (*PASSES, RATIO, INPUTS)
        return {key: row.get(key) if key in optional else row[key] for key in (*columns_of(row), INPUTS)}
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:100]  # some quote the whole file
        raise UserError(f"{path} is damaged: delete it, and its restoration is made again ({reason})") from error


def _may_be(column: str, value: Any) -> bool:
    """Tell whether a column of a row can hold a value."""
    if column in ("image", "reason"):
        return isinstance(value, str)
    if column == INPUTS:
        return isinstance(value, str | None)
    if column == "sample":
        return type(value) is int and value >= 0
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    return is_number if column in ("psnr", "ssim", "residual", "seconds") else is_number or value is None


def restoration_name(image: str, sample: int | str, samples: int) -> str:
    """Return a restoration's name: the image's own, with `_s0`, `_s1`, ... where there are several (``samples``)."""
    return image if samples == 1 else f"{image}_s{sample}"


def columns_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of the table that a row belongs to."""
    return FAILED if has_failed(row) else MEASURED if "residual" in row else METRICS


def has_failed(row: Mapping[str, Any]) -> bool:
    """Tell a row of `failed.csv` from one of `metrics.csv`."""
    return "reason" in row


def is_far(row: Mapping[str, Any]) -> bool:
    """Tell whether a restoration's residual is far from the noise: then something about it is not as the task says."""
    ratio = row.get(RATIO)
    return ratio is not None and not 1 / FAR <= ratio <= FAR


def line(row: Mapping[str, Any]) -> str:
    """Return what came of one restoration as a line of text."""
    if "psnr" in row:
        far = f", residual {row[RATIO]:.2g} times the noise" if is_far(row) else ""
        return f"{row['psnr']:.2f} dB, baseline {row['baseline_psnr']:.2f} dB{far}, {row['seconds']:.1f} s"
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
    """Return a value as it stands in a CSV: floats with six digits, nothing for None.

    A spreadsheet takes text that begins with one of `FORMULA` for a formula, and would run it: an apostrophe before it
    says that it is text. `text_of` takes that off again.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return format(value, ".6g") if isinstance(value, float) else str(value)


def text_of(cell: str) -> str:
    """Return the text that a cell of a CSV stands for."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


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
        f"{'':12s} {'residual':>8s}   (root mean square of y - A(x) where measured; no truth, so no PSNR)\n"
        f"{'baseline':12s} {mean['baseline_residual']:8.4f}\n"
        f"{'restoration':12s} {mean['residual']:8.4f}\n"
        f"{'noise':12s} {f'{np.mean(known):8.4f}' if known else 'not known'}\n"
        f"{len(rows)} restorations, {mean['seconds']:.1f} s each"
    )
