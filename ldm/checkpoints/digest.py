"""A checkpoint's fingerprint, and a check that its content is as it was written."""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ldm.checkpoints.shards import files_of
from util.errors import UserError

BLOCK = 1 << 20  # bytes read at a time
_PARTS = (".json", ".txt", ".safetensors", ".bin")  # of a model in a folder


def checkpoint_sha256(path: Path) -> str:
    """Return the SHA-256 of a model in hexadecimal, and verify in the same pass the checksums of zips.

    `torch.save` writes zips, one member a tensor. Other kinds of file have no checksums.

    Args:
        path: a file; the index of shards, or one of them, for them all; or a folder, for the settings and weights that
            are in its folders.

    Raises:
        UserError: a file cannot be read, or a member of a zip is not what was written.
    """
    if path.is_dir():
        found = [*path.glob("*"), *path.glob("*/*")]
        base, files = path, sorted(one for one in found if one.suffix in _PARTS and one.is_file())
    else:
        base, files = path.parent, files_of(path)
    if len(files) == 1:
        return _sha256(files[0])
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(base).as_posix()} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for start, end, member in _stretches(file):
                file.seek(start)
                checksum, left = 0, end - start
                while left and (block := file.read(min(BLOCK, left))):
                    digest.update(block)
                    checksum = zlib.crc32(block, checksum)
                    left -= len(block)
                if member is not None and checksum != member.CRC:
                    what = ascii(member.filename)[1:-1]
                    raise UserError(f"{path} is damaged: the checksum of {what} in it is wrong; fetch the file again")
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _stretches(file: BinaryIO) -> Iterator[tuple[int, int, zipfile.ZipInfo | None]]:
    """Yield the whole file in order as (start, end, the member of a zip that lies there, unpacked, or None)."""
    size = file.seek(0, 2)
    at = 0
    for start, member in sorted(_members(file), key=lambda found: found[0]):
        end = start + member.file_size
        if at <= start and end <= size:
            yield at, start, None
            yield start, end, member
            at = end
    yield at, size, None


def _members(file: BinaryIO) -> list[tuple[int, zipfile.ZipInfo]]:
    """Return the members of a zip that are not compressed, each with where its content begins; none of other files."""
    found = []
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                file.seek(member.header_offset + 26)
                name_length, extra_length = struct.unpack("<HH", file.read(4))
                if member.compress_type == zipfile.ZIP_STORED:
                    found.append((member.header_offset + 30 + name_length + extra_length, member))
    except (zipfile.BadZipFile, struct.error, ValueError):
        return []
    return found
