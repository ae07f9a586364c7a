"""Checkpoint files as named tensors that are read when they are asked for, and not before.

The files are memory-mapped: a tensor is a view of the file's pages, so nothing is held twice, and what nobody asks for
(moving averages, optimiser states) is never read. Pages that were read count as this process's memory until they are
released; what still views them then finds them in the file again. (Files of the format that torch wrote before version
1.6 cannot be mapped: they are read whole.)
"""

import ctypes
import mmap
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.pickles import (
    DAMAGE,
    HostilePickleError,
    check_extent,
    named_globals,
    split_pickles,
    stand_ins,
)
from util.errors import UserError
from util.files import whole_file
from util.logging import LOGGER

# What reading a damaged file may raise.
_DAMAGE = (
    *(*DAMAGE, AttributeError, AssertionError, RuntimeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError),
)
# The packages whose globals torch itself reads.
_KNOWN_PACKAGES = ("torch", "collections", "builtins", "_codecs")
# A file of the format before torch 1.6 is five pickles (a number, a version, the system, the content, the storages'
# keys) and the numbers.
_LEGACY_PICKLES = 5
# Names under which a file may hold the weights, and their moving averages.
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params")
AVERAGES = ("params_ema", "ema", "ema_state_dict", "ema_model", "model_ema")
_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
_PROTOCOLS = 3  # of pickles: later ones are beyond torch's reader
_REMEDY = (
    "(if you trust where it comes from, save its tensors alone: "
    "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW))"
)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a file.

    Attributes:
        shape: its sides.
        read: reads it, to the CPU in the dtype it is stored in.
        release: gives the memory of the file's pages back; the tensor may still be used.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    release: Callable[[], None]


def read_checkpoint(path: Path, averaged: bool = False) -> dict[str, StoredTensor]:
    """Open a checkpoint and list its tensors.

    Args:
        path: a safetensors file, or one of `torch.save` (zip or legacy format) that holds a state dict, bare or under
            a name of `CONTAINERS`. The content decides which, not the file's name. Nothing of a pickle is run: globals
            that torch does not know become inert stand-ins, listed in one log line.
        averaged: take the moving average of the weights that the file holds under a name of `AVERAGES`, and only that.

    Returns:
        The tensors by name, in the file's order. They hold the file open. None where an average is asked for that the
        file does not hold.

    Raises:
        UserError: there is no such file, it is damaged or something else, or it means to run something.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(9)
            file.seek(0)
            if head[:4] == b"PK\x03\x04":
                return _named(*_read_zip(path, file), averaged)
            if head[8:] == b"{":  # before it, a length, which may begin as a pickle does
                return {} if averaged else _read_safetensors(path)
            if head[:1] == b"\x80":
                return _named(_read_legacy(path, file), False, averaged)
        raise ValueError(_what_begins_with(head))
    except HostilePickleError as error:
        why = f"it names {_printable(error)}, as a file that runs commands does"
        raise UserError(f"{path} is refused: {why}") from error
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise UserError(f"{path} is not a readable checkpoint: {_printable(error)}") from error


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


def _printable(value: object, limit: int = 240) -> str:
    """Text from a file, safe to show on a terminal."""
    text = ascii(str(value))[1:-1]
    return text if len(text) <= limit else f"{text[:limit]}..."


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    with safe_open(path, framework="pt") as file:
        return {name: _stored(file.get_tensor(name), mapped=True) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _what_begins_with(head: bytes) -> str:
    """Say of a file by its first bytes why it is no checkpoint."""
    if head.startswith(b"version "):
        return "a pointer of Git LFS, in place of the file itself: fetch that by `git lfs pull`"
    if head.lstrip().startswith(b"<"):
        return "a web page, not what was to be downloaded"
    if head.startswith(b"GGUF"):
        return "a quantised model in GGUF format"
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")):
        return "an archive: unpack it first"
    return f"it begins with {head!r}, as none does" if head else "it is empty"


def _read_zip(path: Path, file: BinaryIO) -> tuple[Any, bool]:
    """Return what `torch.save` wrote as a zip, and whether its tensors are in the file's pages."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if not pickles and any(name.endswith(_SUFFIXES) for name in names):
            raise ValueError("an archive with a checkpoint in it: unpack it first (scripts/unpack_checkpoint.py)")
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise ValueError("a zip archive that torch.save did not write")
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise ValueError("an archive that is compressed or encrypted: unpack it first")
        content = archive.read(pickles[0])
        room = sum(member.file_size for member in members if "/data/" in member.filename)
    # torch takes a path of this suffix for another format, whatever the file holds, and maps only what has a path.
    mapped = path.suffix != ".safetensors"
    file.seek(0)
    found = _load(path, [content], partial(torch.load, path if mapped else file, mmap=mapped))
    storages = (tensor.untyped_storage() for tensor in _tensors(found))
    if sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) > room:
        raise ValueError("the file lacks part of a tensor")
    return found, mapped


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    """Return what `torch.save` wrote before version 1.6."""
    pickles = split_pickles(file, _LEGACY_PICKLES)
    file.seek(0)
    return _load(path, pickles, partial(torch.load, file))


def _load(path: Path, pickles: list[bytes], load: Callable[..., Any]) -> Any:
    """Have torch read a file, of which these are the pickles, as data."""
    names = named_globals(pickles)
    for content in pickles:
        if content[:1] == b"\x80" and content[1] > _PROTOCOLS:
            raise ValueError(
                f"it was pickled by protocol {content[1]}, which torch cannot read without running code {_REMEDY}"
            )
        check_extent(content)
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins(names)):
        warnings.simplefilter("ignore")  # that it was pickled by another protocol
        try:
            found = load(map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"it holds more than tensors and plain values {_REMEDY}") from error
    unknown = sorted(_printable(name) for name in names if not name.startswith(_KNOWN_PACKAGES))
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        LOGGER.info("%s: %d classes left out, unused: %s%s", path, len(unknown), ", ".join(unknown[:8]), more)
    return found


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries."""
    for value in content.values() if isinstance(content, dict) else ():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, Tensor) and _is_plain(value):
            yield value


def _named(content: Any, mapped: bool, averaged: bool) -> dict[str, StoredTensor]:
    """Return the named tensors of what a file holds; none where it holds weights, and no average that is asked for."""
    found = _within(content, AVERAGES) if averaged else _within(content, (*CONTAINERS, *AVERAGES))
    if averaged and found is content:
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    tensors = {name: _stored(value, mapped) for name, value in pairs if isinstance(name, str) and _is_plain(value)}
    if tensors:
        return tensors
    keys = [str(key) for key in content] if isinstance(content, dict) else []
    if {"state", "param_groups"} <= set(keys):
        raise ValueError("it holds the state of an optimiser, and no model")
    raise ValueError("it holds no named tensors" + (f" (its keys: {', '.join(keys[:8])})" if keys else ""))


def _within(content: Any, names: tuple[str, ...]) -> Any:
    """Return what lies in a file's content under the first of these names that leads to tensors, or the content.

    What lies there may be a container in its turn, under any name that one has.
    """
    for name in names if isinstance(content, dict) else ():
        inner = content.get(name)
        if isinstance(inner, dict) and next(_tensors(inner), None) is not None:
            return _within(inner, (*CONTAINERS, *AVERAGES))
    return content


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with numbers of its own: neither sparse nor quantised nor one number for many.

    Raises:
        ValueError: it repeats its numbers, as no weights do, and could stand for more of them than memory holds.
    """
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.is_quantized
        or value.device.type != "cpu"
    ):
        return False
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError("a tensor claims more numbers than the file holds for it")
    return True


def _stored(tensor: Tensor, mapped: bool) -> StoredTensor:
    tensor = tensor.detach()
    return StoredTensor(tuple(tensor.shape), lambda: tensor, partial(_release, tensor) if mapped else lambda: None)


def _release(tensor: Tensor) -> None:
    """Give a mapped tensor's pages back to the system, where it takes them: nobody writes to them before that."""
    if sys.platform == "linux" and tensor.numel():
        storage = tensor.untyped_storage()
        before = storage.data_ptr() % mmap.PAGESIZE  # in the page where it begins
        first, size = storage.data_ptr() - before, storage.nbytes() + before
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
