"""Arrays out of files that hold one or several: kernels and masks as NumPy, MATLAB, PyTorch and spreadsheets save them.

No file can run code: pickles are refused or read by torch's weights-only reader.
"""

import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.array_files import checked, read_npy, read_numbers, read_safetensors, unreadable
from data.number_text import read_text
from data.picture_files import SUFFIXES
from util.errors import UserError

CHOICE_SUFFIXES = (".npy", ".npz", ".safetensors", ".mat", ".txt", ".csv", ".pt", ".pth")
MAX_ENTRIES = 100_000_000  # of a file's arrays in memory, whatever a few bytes may declare
CHILD_MEMORY = 4 << 30  # bytes of address space

# Damaged bytes may crash SciPy's reader, and the process with it. So another process reads, which may not take all
# memory, and hands over plain arrays by number, and how structures and cells hold them.
MAT_READER = """
import json, math, resource, sys
import numpy as np
from scipy.io import loadmat
path, memory, entries, out = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (int(memory),) * 2)
arrays = []
def packed(value):
    if math.prod(getattr(value, "shape", ())) > int(entries):
        raise MemoryError
    value = np.asarray(value.toarray() if hasattr(value, "toarray") else value)
    if value.dtype.names and value.size == 1:
        return {"fields": [[name, packed(value[name].item())] for name in value.dtype.names]}
    if value.dtype == object:
        return {"cells": [packed(entry) for entry in value.flat], "shape": value.shape}
    arrays.append(value if value.dtype.kind in "buifcUS" else np.array("a structure"))
    return len(arrays) - 1
try:
    found = [[key, packed(value)] for key, value in loadmat(path).items() if not key.startswith("__")]
    np.savez(out, *arrays, found=json.dumps(found))
except MemoryError:
    sys.exit(3)
"""


def path_text(value: Any) -> Any:
    """Raise ValueError for text that is no path: an empty one would be the working folder."""
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("expected the path of a file or folder")
    return value


def files_by_name(folder: Path, called: str) -> dict[str, Path]:
    """Return a folder's pictures and arrays by their names without suffix; ``called`` is what a message calls it.

    Raises:
        UserError: two files have one name.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in (*SUFFIXES, *CHOICE_SUFFIXES) or file.name.startswith("."):
            continue
        other = files.setdefault(file.stem, file)
        if other != file:
            raise UserError(
                f"{called} {folder}: {other.name} and {file.name} are both for {file.stem!r}: keep only one of them"
            )
    return files


class FoundArray(NamedTuple):
    """An array from a file.

    Attributes:
        array: finite numbers, of any shape.
        path: the file.
        is_saved_state: whether a run of this program has written it, beside a measurement.
    """

    array: np.ndarray
    path: Path
    is_saved_state: bool = False


def read_array(text: str, wanted: str) -> FoundArray:
    """Read an array from a file: FILE, FILE#NAME or FILE#NAME[NUMBER].

    A picture is read as grey (H, W). Of several arrays in a .npz, .mat, .safetensors or .pt file, NAME says which, or
    the one called ``wanted`` is taken. NUMBER, from 1, is that of an entry of a MATLAB cell array, of a list, or of an
    array with three sides (MATLAB's last, others' first).

    Raises:
        UserError: there is no such file or array, the choice is open, or the file cannot be read.
    """
    path, name, number = _split(text)
    suffix, is_saved = path.suffix.lower(), False
    arrays: Mapping[str, Any]
    if suffix == ".safetensors":
        arrays, remarks = read_safetensors(path)
        is_saved = "made_by" in remarks
    elif suffix == ".npy":
        arrays = {"": read_npy(path)}
    elif suffix in _READERS:
        arrays = _read(path)
    else:
        arrays = {"": read_numbers(path)}
    value = _named(path, arrays, name, wanted)
    return FoundArray(checked(str(path), _entry(path, value, number, suffix == ".mat")), path, is_saved)


def _split(text: str) -> tuple[Path, str | None, int | None]:
    """Return the file, the array's name and the entry's number; a file's own name may hold a #."""
    head, mark, choice = text.rpartition("#")
    if os.path.exists(text) or not mark or not os.path.exists(head):
        return Path(text), None, None
    parts = re.fullmatch(r"([^\[\]]*)(?:\[([1-9]\d{0,8})\])?", choice)
    if parts is None:
        raise UserError(f"{text}: expected FILE#NAME or FILE#NAME[NUMBER], numbers from 1")
    return Path(head), parts[1] or None, int(parts[2]) if parts[2] else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return _READERS[path.suffix.lower()](path)
    except UserError:
        raise
    except NotImplementedError as error:  # of SciPy, for MATLAB's format 7.3
        raise UserError(f"{path}: this MATLAB format is not read: save it with -v7") from error
    except Exception as error:  # whatever a damaged file leads to
        raise unreadable(path, error) from error


def _read_npz(path: Path) -> Mapping[str, Any]:
    _check_unpacked(path)
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _read_mat(path: Path) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "arrays.npz"
        words = [sys.executable, "-c", MAT_READER, str(path), str(CHILD_MEMORY), str(MAX_ENTRIES), str(out)]
        # Each thread of OpenBLAS, of which there may be many, would take address space.
        run = subprocess.run(words, capture_output=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
        if run.returncode < 0:
            raise ValueError("it crashes SciPy's reader")
        if run.returncode == 3:
            raise ValueError("its arrays take too much memory")
        if run.returncode:
            kind, _, told = run.stderr.decode(errors="replace").strip().rpartition("\n")[2].partition(": ")
            raise (NotImplementedError if kind == "NotImplementedError" else ValueError)(told or kind)
        with np.load(out, allow_pickle=False) as file:
            found = json.loads(str(file["found"]))
            return _flat({key: _unpacked(value, file) for key, value in found})


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return what `MAT_READER` has packed: an array, a mapping for a structure, an array of objects for cells."""
    if isinstance(value, int):
        return arrays[f"arr_{value}"]
    if "fields" in value:
        return {name: _unpacked(field, arrays) for name, field in value["fields"]}
    cells = np.empty(len(value["cells"]), dtype=object)
    for index, cell in enumerate(value["cells"]):
        cells[index] = _unpacked(cell, arrays)
    return cells.reshape(value["shape"])


def _read_text(path: Path) -> Mapping[str, Any]:
    return {"": read_text(path)}


def _read_torch(path: Path) -> Mapping[str, Any]:
    _check_unpacked(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than tensors: save the tensor alone, or the array as .npy") from error
    return _flat(found if isinstance(found, Mapping) else {"": found})


def _check_unpacked(path: Path) -> None:
    """Raise ValueError for an archive whose members are too large once unpacked."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > 8 * MAX_ENTRIES:
                raise ValueError("its arrays take too much memory")


def _flat(entries: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the arrays in mappings and MATLAB structures, called OUTER.INNER."""
    arrays: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, Mapping):
            arrays |= {f"{key}.{name}" if key != "" else name: array for name, array in _flat(value).items()}
        else:
            arrays[str(key)] = _as_numpy(value)
    return arrays


def _as_numpy(value: Any) -> Any:
    """Turn a tensor, numbers, or each of a list of tensors, into an array."""
    if isinstance(value, list | tuple):
        entries = [_as_numpy(entry) for entry in value]
        return entries if any(isinstance(entry, list) or entry.ndim for entry in entries) else np.array(entries)
    # A tensor that repeats its numbers may declare any size.
    if math.prod(getattr(value, "shape", ())) > MAX_ENTRIES:
        raise ValueError(f"an array of more than {MAX_ENTRIES:,} entries")
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    if value.is_complex():
        raise ValueError("complex numbers")
    return value.detach().double().numpy()


_READERS = {
    ".npz": _read_npz,
    ".mat": _read_mat,
    ".txt": _read_text,
    ".csv": _read_text,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def _named(path: Path, arrays: Mapping[str, Any], name: str | None, wanted: str) -> Any:
    if name is not None and "" not in arrays:
        if name not in arrays:
            raise UserError(f"{path}: no array called {name!r}: it holds {', '.join(arrays) or 'none'}")
        return arrays[name]
    if wanted in arrays:
        return arrays[wanted]
    likely = {key: value for key, value in arrays.items() if isinstance(value, list) or _may_be_one(value)}
    if len(arrays) != 1 and len(likely) != 1:
        held = ", ".join(arrays) or "none"
        raise UserError(f"{path}: expected one array, found {len(arrays)}: {held}: name one, as in {path.name}#NAME")
    return next(iter((likely or arrays).values()))


def _may_be_one(value: np.ndarray) -> bool:
    """Whether an array has sides and numbers, or arrays, in it: what lies beside it is a number or a text."""
    return value.size > 1 and value.ndim > 1 and value.dtype.kind in "buifO"


def _entry(path: Path, value: Any, number: int | None, last: bool) -> np.ndarray:
    """Return an entry of a list, a cell array or an array with three sides; without a number, what is the only one."""
    entries: Sequence[Any]
    if isinstance(value, list) or value.dtype == object:
        entries = value if isinstance(value, list) else list(value.flatten(order="F"))
    elif number is not None and value.ndim == 3:
        entries = list(np.moveaxis(value, -1, 0) if last else value)
    else:
        entries = [value]
    if number is None and len(entries) != 1:
        raise UserError(f"{path}: holds {len(entries)} arrays: say which, as in {path.name}#NAME[1]")
    if (number or 1) > len(entries):
        raise UserError(f"{path}: there is no entry {number}: it holds {len(entries)}")
    entry = entries[(number or 1) - 1]
    if isinstance(entry, list):
        raise UserError(f"{path}: it holds a list of lists: save the array alone")
    return np.asarray(entry)
