"""Checkpoint files as named tensors that are read when they are asked for, and not before.

The files are memory-mapped: a tensor is a view of the file's pages, so nothing is held twice, and what nobody asks for
(moving averages, optimiser states) is never read. Pages that were read count as this process's memory until they are
released; what still views them then finds them in the file again.
"""

import json
import logging
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from util.errors import UserError
from util.files import whole_file
from util.safe_pickle import Function, HostilePickleError, PickleReader, apply
from util.stored_tensor import Storage, StoredTensor

logger = logging.getLogger("resample")

# What reading a damaged file may raise.
_DAMAGE = (
    *(ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError, RuntimeError),
    *(struct.error, zipfile.BadZipFile, SafetensorError),
)

# What the first pickle holds in the format that torch wrote before version 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Open a checkpoint and list its tensors.

    Args:
        path: a safetensors file, or one of `torch.save` (zip or legacy format) that holds a state dict, bare or under
            `state_dict`. The content decides which, not the file's name. Nothing of a pickle is run: classes that it
            names become placeholders, listed in one log line.

    Returns:
        The tensors by name, in the file's order. They hold the file open.

    Raises:
        UserError: there is no such file, it is damaged or something else, or it means to run something.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(9)
            if head[:4] == b"PK\x03\x04":
                return _read_zip(path, file)
            if head[:1] == b"\x80":
                return _read_legacy(path, file)
            if head[8:] == b"{":
                return _read_safetensors(path, file)
        raise ValueError(f"it begins with {head!r}, as none does" if head else "it is empty")
    except HostilePickleError as error:
        why = f"it names {_printable(error)}, as a file that runs commands does"
        raise UserError(f"{path} is refused: {why}") from error
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise UserError(f"{path} is not a readable checkpoint: {_printable(error)}") from error


def moving_averages(path: Path, stored: Mapping[str, StoredTensor], weights: Iterable[str]) -> dict[str, StoredTensor]:
    """Return the averages that training kept of a latent diffusion model's UNet, under the weights' own names.

    Args:
        path: the file, for the error message.
        stored: its tensors. The average of `model.a.b` is `model_ema.ab`.
        weights: the names of the weights.

    Raises:
        UserError: a weight has no average in the file.
    """
    averages = {name: "model_ema." + name.removeprefix("model.").replace(".", "") for name in weights}
    missing = [average for average in averages.values() if average not in stored]
    if missing:
        raise UserError(f"{path} holds no complete moving average of the weights ({missing[0]} is missing)")
    return {name: stored[average] for name, average in averages.items()}


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that appears complete or not at all. Tensors of a mapped file pass straight through.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        with whole_file(path) as beside:
            save_file(dict(tensors), beside, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def _printable(value: object, limit: int = 160) -> str:
    """Text from a file, safe to show on a terminal."""
    text = ascii(str(value))[1:-1]
    return text if len(text) <= limit else f"{text[:limit]}..."


@dataclass(frozen=True, eq=False)
class _StorageType:
    """What a pickle means by torch.FloatStorage and its like."""

    dtype: torch.dtype


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """Rebuild what torch.save made of a tensor. Nothing may reach outside the storage, or repeat its numbers."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or any(type(n) is not int for n in numbers):
        raise TypeError("a tensor that is none")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min(numbers) < 0 or (0 not in shape and (last >= storage.numel or prod(shape) > storage.numel)):
        raise ValueError("a tensor that reaches outside its storage")
    return StoredTensor(tuple(shape), partial(storage.view, offset, tuple(shape), tuple(stride)), storage.release)


_TABLE: dict[str, Any] = {
    "torch._utils._rebuild_tensor": Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Function(_rebuild_tensor),
    "torch._utils._rebuild_parameter": Function(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": Function(lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": Function(lambda function, _type, arguments, *_: apply(function, arguments)),
    "torch.Size": Function(lambda sizes=(): tuple(sizes)),
    "torch.DoubleStorage": _StorageType(torch.float64),
    "torch.FloatStorage": _StorageType(torch.float32),
    "torch.HalfStorage": _StorageType(torch.float16),
    "torch.BFloat16Storage": _StorageType(torch.bfloat16),
    "torch.LongStorage": _StorageType(torch.int64),
    "torch.IntStorage": _StorageType(torch.int32),
    "torch.ShortStorage": _StorageType(torch.int16),
    "torch.CharStorage": _StorageType(torch.int8),
    "torch.ByteStorage": _StorageType(torch.uint8),
    "torch.BoolStorage": _StorageType(torch.bool),
}


class _Storages(dict[str, Storage]):
    """The storages that a pickle names, by key; a new one is placed by a function of its key (legacy: later)."""

    def __init__(self, buffer: mmap.mmap, place: Callable[[Storage, str], None] | None = None) -> None:
        super().__init__()
        self._buffer, self._place = buffer, place

    def persistent_load(self, identity: Any) -> Storage:
        """Return the storage of a persistent id: ("storage", type, key, device, numel) and, in legacy files, None."""
        kind, storage_type, key, _device, numel, *view = identity
        good = kind == "storage" and isinstance(storage_type, _StorageType) and isinstance(key, str)
        if not good or type(numel) is not int or numel < 0 or any(view):
            raise TypeError("a storage that is none")
        if key not in self:
            storage = Storage(self._buffer, storage_type.dtype, numel)
            if self._place is not None:
                self._place(storage, key)
            self[key] = storage
        return self[key]


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _read_safetensors(path: Path, file: BinaryIO) -> dict[str, StoredTensor]:
    with safe_open(path, framework="pt") as checked:  # that header and file fit one another
        names = list(checked.keys())
    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (length,) = struct.unpack_from("<Q", buffer)
    header = json.loads(buffer[8 : 8 + length])
    tensors = {}
    for name in names:
        dtype, shape = header[name]["dtype"], tuple(header[name]["shape"])
        if dtype not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{name} holds {dtype} numbers")
        storage = Storage(buffer, _SAFETENSORS_DTYPES[dtype], prod(shape))
        storage.place(8 + length + header[name]["data_offsets"][0])
        stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
        tensors[name] = StoredTensor(shape, partial(storage.view, 0, shape, stride), storage.release)
    return tensors


def _read_zip(path: Path, file: BinaryIO) -> dict[str, StoredTensor]:
    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    records = _records(file, buffer)
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip archive that torch.save did not write")
    folder = pickles[0].removesuffix("data.pkl")
    start, size = records[pickles[0]]
    order, length = records.get(f"{folder}byteorder", (0, 0))
    if buffer[order : order + length] not in (b"", b"little"):
        raise ValueError("its numbers are stored big end first")

    def place(storage: Storage, key: str) -> None:
        record, room = records[f"{folder}data/{key}"]
        if room < storage.nbytes:
            raise ValueError("the file lacks part of a tensor")
        storage.place(record)

    reader = PickleReader(_TABLE, _Storages(buffer, place).persistent_load)
    return _tensors(path, reader.load(BytesIO(buffer[start : start + size])), reader)


def _records(file: BinaryIO, buffer: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Return where each file of a zip archive begins, and its size. torch.save does not compress them."""
    places = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise ValueError("an archive that is compressed or encrypted: unpack it first")
            name_length, extra_length = struct.unpack_from("<HH", buffer, info.header_offset + 26)
            start = info.header_offset + 30 + name_length + extra_length
            if start < 0 or start + info.file_size > len(buffer):
                raise ValueError("the archive is cut off")
            places[info.filename] = (start, info.file_size)
    return places


def _read_legacy(path: Path, file: BinaryIO) -> dict[str, StoredTensor]:
    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    storages = _Storages(buffer)
    reader = PickleReader(_TABLE, storages.persistent_load)
    if reader.load(buffer) != LEGACY_MAGIC:
        raise ValueError("a pickle that torch.save did not write")
    _version, system = reader.load(buffer), reader.load(buffer)
    if not (isinstance(system, dict) and system.get("little_endian")):
        raise ValueError("its numbers are stored big end first")
    content, keys = reader.load(buffer), reader.load(buffer)
    for key in keys:
        (numel,) = struct.unpack("<q", buffer.read(8))
        if numel != storages[key].numel:
            raise ValueError("a tensor of another size than announced")
        storages[key].place(buffer.tell())
        buffer.seek(storages[key].nbytes, os.SEEK_CUR)
    if any(storage.start is None for storage in storages.values()):
        raise ValueError("the file lacks the numbers of a tensor")
    return _tensors(path, content, reader)


def _tensors(path: Path, content: Any, reader: PickleReader) -> dict[str, StoredTensor]:
    """Return the tensors of what a pickle held, and log which classes it named in vain."""
    if reader.placeholders:
        names = sorted(map(_printable, reader.placeholders))
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        logger.info("%s: %d classes left out, unused: %s%s", path, len(names), ", ".join(names[:8]), more)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    pairs = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in pairs if isinstance(name, str) and isinstance(value, StoredTensor)}
    if not tensors:
        raise ValueError("it holds no named tensors")
    return tensors
