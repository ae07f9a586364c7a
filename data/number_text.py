"""Arrays of numbers written as text: by NumPy and MATLAB, by spreadsheets, or by hand. Imports no torch."""

import re
from pathlib import Path

import numpy as np

_COMMENT = re.compile(r"(#|%|//).*")
_ROWS = re.compile(r"\]\s*[,;]?\s*\[")  # between two rows of a nested list
_FORTRAN = re.compile(r"(?<=[\d.])[dD](?=[+-]?\d)")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+([eE][+-]?\d+)?)?")


def read_text(path: Path) -> np.ndarray:
    """Read rows of numbers (H, W), float64.

    Numbers are apart by spaces, tabs, commas or semicolons. Where one of the others keeps them apart, commas are
    decimal ones, as spreadsheets of many languages write. Rows are lines, or as MATLAB and Python write them in
    brackets. Comments (#, %, //), and a first line of words, count for nothing.

    Raises:
        ValueError: there is something else, or rows of different lengths.
    """
    content = path.read_bytes()
    coding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = [_COMMENT.sub("", line) for line in content.decode(coding, errors="replace").splitlines()]
    if any("[" in line for line in lines):
        lines = _ROWS.sub(";", "\n".join(lines)).translate({ord(mark): " " for mark in "[]"}).splitlines()
    fields = [row for line in lines for row in _rows(line.replace('"', "").strip().strip(",;").strip())]
    if len(fields) > 1 and not any(map(_is_number, fields[0])):
        fields = fields[1:]  # what a table calls its columns
    lengths = sorted({len(row) for row in fields})
    if len(lengths) > 1:
        raise ValueError(f"its rows have different lengths, from {lengths[0]} to {lengths[-1]}")
    return np.array(fields, dtype=np.float64)


def _rows(line: str) -> list[list[str]]:
    """Return the fields of each row in a line."""
    parts = [part.strip() for part in line.split(";") if part.strip()]
    if len(parts) > 1 and all(_DECIMAL_COMMA.fullmatch(part) for part in parts):
        return [[part.replace(",", ".") for part in parts]]
    if len(parts) > 1 and not any(re.search(r"[\s,]", part) for part in parts):
        return [[_FORTRAN.sub("e", part) for part in parts]]
    return [_fields(part) for part in parts]


def _fields(row: str) -> list[str]:
    words = row.split()
    if len(words) > 1 and "," in row and all(map(_DECIMAL_COMMA.fullmatch, words)):
        return [word.replace(",", ".") for word in words]
    return [_FORTRAN.sub("e", field) for field in re.split(r"[,\s]+", row)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
