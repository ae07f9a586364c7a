"""Arrays of numbers written as text: by NumPy and MATLAB, by spreadsheets, or by hand. Imports no torch."""

import csv
import re
from pathlib import Path

import numpy as np

_COMMENT = re.compile(r"(#|%|//).*")
_NESTED = re.compile(r"\[\s*\[")
_BETWEEN_ROWS = re.compile(r"\]\s*[,;]?\s*\[")  # of a nested list
_FORTRAN = re.compile(r"(?<=[\d.])[dD](?=[+-]?\d)")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+([eE][+-]?\d+)?)?")
_APART = re.compile(r"\s*,\s*| *\t *|\s+")  # what keeps numbers apart; two of it have an empty field between them


def read_text(path: Path) -> np.ndarray:
    """Read rows of numbers (H, W), float64.

    Numbers are apart by spaces, tabs, commas or semicolons. Where one of the others keeps them apart, or quotes do,
    commas are decimal ones, as spreadsheets of many languages write. Rows are lines, or as MATLAB and Python write them
    in brackets: there a semicolon ends a row, and no comma is a decimal one. Comments (#, %, //), and a first line of
    words, count for nothing.

    Raises:
        ValueError: there is something else, an empty cell, or rows of different lengths.
    """
    content = path.read_bytes()
    coding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = "\n".join(_COMMENT.sub("", line) for line in content.decode(coding, errors="replace").splitlines())
    rows = _in_brackets(text) if "[" in text else [row for line in text.splitlines() for row in _in_line(line.strip())]
    if len(rows) > 1 and not any(map(_is_number, rows[0])):
        rows = rows[1:]  # what a table calls its columns
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(f"its rows have different lengths, from {lengths[0]} to {lengths[-1]}")
    if any("" in row for row in rows):
        raise ValueError("it has an empty cell")
    return np.array(rows, dtype=np.float64)


def _in_brackets(text: str) -> list[list[str]]:
    """Return the fields of each row of a matrix as MATLAB or Python writes it."""
    if _NESTED.search(text):  # then a line's end is no more than a space
        text = _BETWEEN_ROWS.sub(";", text.replace("\n", " "))
    text = _BETWEEN_ROWS.sub("\n", text).translate({ord(mark): " " for mark in "[]"})
    rows = (row.strip().removesuffix(",").strip() for row in re.split("[;\n]", text))
    return [_apart(row) for row in rows if row]


def _in_line(line: str) -> list[list[str]]:
    """Return the fields of each row in a line without brackets."""
    if not line.strip(",; \t"):
        return []
    if '"' in line:
        mark = next((mark for mark in ";\t" if mark in re.sub('"[^"]*"', "", line)), ",")
        return [[_with_point(field.strip()) for field in next(csv.reader([line], delimiter=mark))]]
    line = line[:-1].rstrip() if line[-1] in ",;" else line
    parts = [part.strip() for part in line.split(";")]
    if len(parts) > 1 and not any(re.search(r"\s", part) for part in parts):
        if all(_DECIMAL_COMMA.fullmatch(part) for part in parts if part):
            return [[_with_point(part) for part in parts]]
        if not any("," in part for part in parts):
            return [[_with_e(part) for part in parts]]
    return [_row(part) for part in parts]


def _row(row: str) -> list[str]:
    words = row.split()
    if len(words) > 1 and "," in row and all(map(_DECIMAL_COMMA.fullmatch, words)):
        return [_with_point(word) for word in words]
    return _apart(row)


def _apart(row: str) -> list[str]:
    return [_with_e(field) for field in _APART.split(row)]


def _with_point(field: str) -> str:
    return field.replace(",", ".") if _DECIMAL_COMMA.fullmatch(field) else field


def _with_e(field: str) -> str:
    return _FORTRAN.sub("e", field)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
