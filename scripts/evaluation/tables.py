"""Tables of measures as text, Markdown, LaTeX, CSV and JSON."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ldm_inverse.runs.results import RATIO, csv_of
from scripts.evaluation.differences import Difference
from scripts.evaluation.entries import Entry
from scripts.evaluation.statistics import CONFIDENCE, Summary
from scripts.text_tables import aligned, markdown_table


class Column(NamedTuple):
    """A metric as it stands in a table.

    Attributes:
        key: its name in files.
        head: its name for a reader.
        digits: after the point.
        better: 1 where more is better, -1 where less is, 0 where neither.
        spread: whether standard deviation and interval are worth their room.
    """

    key: str
    head: str
    digits: int
    better: int = 0
    spread: bool = True


COLUMNS = (
    Column("psnr", "PSNR / dB", 2, 1),
    Column("ssim", "SSIM", 3, 1),
    Column("lpips_alex", "LPIPS alex", 3, -1),
    Column("lpips_vgg", "LPIPS vgg", 3, -1),
    Column("fid", "FID", 1, -1, spread=False),
    Column("frechet", "Fréchet", 2, -1, spread=False),
    Column("residual", "residual", 5),
    Column("noise", "noise", 5, spread=False),
    Column(RATIO, "res. / noise", 2, spread=False),
    Column("coverage", "coverage", 3),
    Column("seconds", "s each", 2, -1, spread=False),
    Column("unet", "UNet", 0, -1, spread=False),
    Column("unet_backward", "UNet back", 0, -1, spread=False),
    Column("decoder_forward", "decoder", 0, -1, spread=False),
    Column("decoder_backward", "dec. back", 0, -1, spread=False),
    Column("encoder_forward", "encoder", 0, -1, spread=False),
    Column("encoder_backward", "enc. back", 0, -1, spread=False),
)
COMPARED = tuple(column for column in COLUMNS if column.spread or column.key == "seconds")
LEGEND = (
    f"mean ± standard deviation over the images, [{CONFIDENCE:.0%} bootstrap interval of the mean]; restorations of\n"
    "the same image are averaged first; (n = 2): over two of the images, as the others have no truth\n"
    "residual: root mean square of y - A(x), x being the 8-bit picture, whose rounding alone makes up to 0.0023;\n"
    "noise: that of the noise in y; images are in [-1, 1]; res. / noise: their ratio, 1 where the noise alone is left\n"
    "Fréchet: distance between Gaussians of features of the first stage, over what a mask dropped\n"
    "coverage: share of the truth's entries that lie in the 90 % interval of an image's restorations\n"
    "UNet, decoder, encoder: passes for one restoration, forward through each, and back through each"
)


class Line(NamedTuple):
    """A line of a table: a name, the number of images, what there is to say by column, and which columns stand out."""

    title: str
    n: int
    cells: dict[str, Summary]
    best: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes:
        notes: the settings of the metrics and whatever a reader should know, a line each.
        entries: a row each.
        differences: between them.
    """

    notes: Sequence[str]
    entries: Sequence[Entry]
    differences: Sequence[Difference]

    def columns(self) -> list[Column]:
        """Return the metrics that were measured on any entry."""
        return [column for column in COLUMNS if any(entry.summary(column.key) for entry in self.entries)]

    def lines(self) -> list[Line]:
        """Return a line for each entry; the best of each task on the same images stand out."""
        cells = [_summaries(entry) for entry in self.entries]
        keys = [(entry.task, entry.measurements().keys()) for entry in self.entries]
        lines = []
        for entry, key, own in zip(self.entries, keys, cells, strict=True):
            rivals = [other for rival, other in zip(keys, cells, strict=True) if rival == key]
            best = {c.key for c in COLUMNS if c.better and c.spread and len(rivals) > 1 and _is_best(c, own, rivals)}
            lines.append(Line(entry.title, len(entry.measurements()), own, frozenset(best)))
        return lines

    def difference_lines(self) -> dict[str, list[Line]]:
        """Return a line for each difference, by what is subtracted."""
        found: dict[str, list[Line]] = {}
        for entry, other, columns in self.differences:
            n = max(summary.n for summary in columns.values())
            found.setdefault(other, []).append(Line(entry, n, columns))
        return found


def _summaries(entry: Entry) -> dict[str, Summary]:
    found = {column.key: entry.summary(column.key) for column in COLUMNS}
    return {key: summary for key, summary in found.items() if summary is not None}


def _is_best(column: Column, own: dict[str, Summary], rivals: Iterable[dict[str, Summary]]) -> bool:
    found = [rival[column.key] for rival in rivals if column.key in rival]
    if column.key not in own or len({summary.n for summary in found}) > 1:  # means over other images do not compare
        return False
    return column.better * own[column.key].mean == max(column.better * summary.mean for summary in found)


def _number(value: float, column: Column, sign: str = "") -> str:
    return format(round(value, column.digits) + 0.0, f"{sign}.{column.digits}f")  # + 0.0: no -0.00


def _main(column: Column, line: Line, sign: str = "") -> str:
    """Return mean and standard deviation as text, and the number of images where it is not the line's."""
    summary = line.cells.get(column.key)
    if summary is None:
        return ""
    spread = "" if summary.sd is None or not column.spread else f" ± {_number(summary.sd, column)}"
    fewer = f" (n = {summary.n})" if summary.n != line.n else ""
    return _number(summary.mean, column, sign) + spread + fewer


def _interval(column: Column, line: Line, sign: str = "") -> str:
    summary = line.cells.get(column.key)
    if summary is None or not column.spread or summary.low is None or summary.high is None:
        return ""
    return f"[{_number(summary.low, column, sign)}, {_number(summary.high, column, sign)}]"


# Corner, lines, columns and the sign of numbers above 0 to a table.
Table = Callable[[str, Sequence[Line], Sequence[Column], str], str]


def _tables(evaluation: Evaluation, table: Table, corner: str, how: str = "") -> Iterator[str]:
    """Yield the table of all entries, and one for each that others are compared with; ``how`` is said in its corner."""
    yield table(corner, evaluation.lines(), evaluation.columns(), "")
    for other, lines in evaluation.difference_lines().items():
        shown = [column for column in COMPARED if any(column.key in line.cells for line in lines)]
        yield table(f"less {other}{how}", lines, shown, "+")


# For a terminal.


def as_text(evaluation: Evaluation) -> str:
    """Return the tables for a terminal: two lines for each entry, the second with the intervals."""
    tables = _tables(evaluation, _text_table, "", ", image by image")
    return "\n\n".join(["\n".join(evaluation.notes), *tables, LEGEND])


def _text_table(corner: str, lines: Sequence[Line], columns: Sequence[Column], sign: str) -> str:
    rows = [[corner, "images", *(column.head for column in columns)]]
    for line in lines:
        rows.append([line.title, str(line.n), *(_main(column, line, sign) for column in columns)])
        intervals = [_interval(column, line, sign) for column in columns]
        if any(intervals):
            rows.append(["", "", *intervals])
    return aligned(rows)


# For a paper or a page.


def as_markdown(evaluation: Evaluation) -> str:
    """Return the tables in Markdown; the best of each task are bold."""
    notes, legend = ("\n".join(f"{line}  " for line in lines) for lines in (evaluation.notes, LEGEND.split("\n")))
    return "\n".join([notes, *_tables(evaluation, _markdown, "run", ", image by image"), legend, ""])


def _markdown(corner: str, lines: Sequence[Line], columns: Sequence[Column], sign: str) -> str:
    body = []
    for line in lines:
        cells = []
        for column in columns:
            text = _main(column, line, sign)
            text = f"**{text}**" if column.key in line.best else text
            cells.append(" ".join(filter(None, [text, _interval(column, line, sign)])))
        body.append([line.title.replace("|", "\\|"), str(line.n), *cells])
    return markdown_table([corner.replace("|", "\\|"), "images", *(column.head for column in columns)], body)


_TEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}"})


def as_latex(evaluation: Evaluation) -> str:
    """Return the tables in LaTeX, for the package booktabs; intervals stand below the means."""
    tables = _tables(evaluation, _latex, "run")
    notes = [*evaluation.notes, *LEGEND.split("\n")]
    return "".join(f"% {note}\n" for note in notes) + "\n".join(tables)


def _latex(corner: str, lines: Sequence[Line], columns: Sequence[Column], sign: str) -> str:
    head = [corner.translate(_TEX), "images", *(column.head.translate(_TEX) for column in columns)]
    text = [rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    for line in lines:
        cells = [_main(column, line, sign).replace("±", r"\pm") for column in columns]
        cells = [cell and f"${cell}$" for cell in cells]
        cells = [rf"\boldmath{cell}" if c.key in line.best else cell for cell, c in zip(cells, columns, strict=True)]
        text.append(" & ".join([line.title.translate(_TEX), str(line.n), *cells]) + r" \\")
        intervals = [_interval(column, line, sign) for column in columns]
        if any(intervals):
            small = [cell and rf"\scriptsize ${cell}$" for cell in intervals]
            text.append(" & ".join(["", "", *small]) + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", ""])


# For programs.


def images_csv(evaluation: Evaluation) -> bytes:
    """Return a row for each restoration."""
    columns = [column.key for column in evaluation.columns() if column.key not in ("fid", "frechet")]
    rows = [
        {"run": entry.title, "image": found.image, "restoration": found.name}
        | {column: found.values.get(column) for column in columns}
        for entry in evaluation.entries
        for found in entry.observations
    ]
    return csv_of(["run", "image", "restoration", *columns], rows)


def summary_csv(evaluation: Evaluation) -> bytes:
    """Return a row for each entry and metric, and for each difference and metric; `less` is what is subtracted."""
    rows = [
        {"run": title, "less": other, "metric": key, **summary._asdict()}
        for title, other, cells in _all_summaries(evaluation)
        for key, summary in cells.items()
    ]
    return csv_of(["run", "less", "metric", *Summary._fields], rows)


def _all_summaries(evaluation: Evaluation) -> list[tuple[str, str | None, dict[str, Summary]]]:
    own = [(entry.title, None, _summaries(entry)) for entry in evaluation.entries]
    return [*own, *evaluation.differences]


def as_json(evaluation: Evaluation) -> bytes:
    """Return everything, restorations and their measurements' fingerprints included; infinite numbers are null."""
    content = {
        "notes": list(evaluation.notes),
        "entries": [
            {
                "title": entry.title,
                "folders": entry.folders,
                "failed": entry.failed,
                "summary": {key: summary._asdict() for key, summary in _summaries(entry).items()},
                "restorations": [
                    {"image": o.image, "name": o.name, "measurement": o.measurement or None, **o.values}
                    for o in entry.observations
                ],
            }
            for entry in evaluation.entries
        ],
        "differences": [
            {"entry": entry, "less": other, "summary": {key: s._asdict() for key, s in columns.items()}}
            for entry, other, columns in evaluation.differences
        ],
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    """Return a value with None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


FILES = {
    "images.csv": images_csv,
    "summary.csv": summary_csv,
    "evaluation.json": as_json,
    "evaluation.md": lambda evaluation: as_markdown(evaluation).encode(),
    "evaluation.tex": lambda evaluation: as_latex(evaluation).encode(),
}
