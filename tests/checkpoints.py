"""Checkpoint files for tests: ordinary ones, and such as only an attacker would write."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What the first pickle holds in the format that torch wrote before version 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def write_zip(path: Path, content: bytes, storages: Mapping[str, bytes]) -> Path:
    """Write torch's zip format around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers)
    return path


def write_legacy(path: Path, content: bytes, storages: Mapping[str, bytes], **parts: bytes) -> Path:
    """Write the format of torch before 1.6 around a pickle; `parts` puts other bytes in the place of its parts."""
    standard = {
        "magic": pickle.dumps(LEGACY_MAGIC, 2),
        "version": pickle.dumps(1001, 2),
        "system": pickle.dumps({"little_endian": True}, 2),
        "content": content,
        "keys": pickle.dumps(list(storages), 2),
        "numbers": b"".join(struct.pack("<q", len(numbers) // 4) + numbers for numbers in storages.values()),
    }
    path.write_bytes(b"".join({**standard, **parts}.values()))
    return path


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self) -> None:
        """Let pickle take a call for a function, so that what a call gives can be called."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class PersistentId:
    """Pickles as a persistent id."""

    def __init__(self, identity: Any) -> None:
        self.identity = identity


def dumps(value: Any, protocol: int = 2) -> bytes:
    """Pickle, with `Call` and `PersistentId`."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return item.identity if isinstance(item, PersistentId) else None

    stream = io.BytesIO()
    Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def loads_unsafely(content: bytes) -> Any:
    """Do what Python's own unpickler does, to show that an attack is one."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, _: Any) -> None:
            return None

    return Unpickler(io.BytesIO(content)).load()
