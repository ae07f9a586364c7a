#!/usr/bin/env python3
"""Take the one model.ckpt out of a downloaded archive, after checking the archive as a whole.

The archive's own names are not used. An archive with a link, or with a name that leads out of its folder, is refused.
The checkpoint appears complete or not at all. Only the standard library is used.
"""

import argparse
import contextlib
import lzma
import os
import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath


def check(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Check names, kinds and checksums of all members.

    Returns:
        The member that is the checkpoint.

    Raises:
        ValueError: something is wrong; the message says what.
    """
    for member in archive.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in member.filename:
            raise ValueError(f"it holds a name that leads out of its folder: {member.filename!a}")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"it holds a link or a device: {member.filename!a}")
    found = [m for m in archive.infolist() if PurePosixPath(m.filename).name == "model.ckpt" and not m.is_dir()]
    if len(found) != 1:
        raise ValueError(f"it holds {len(found)} files named model.ckpt, and should hold one")
    damaged = _first_damaged(archive)
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged!a} is wrong")
    return found[0]


def _first_damaged(archive: zipfile.ZipFile) -> str | None:
    """Return the first member whose checksum is wrong; raises ValueError for one that cannot even be unpacked."""
    try:
        return archive.testzip()
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"it is damaged: {error}") from error
    except OSError as error:
        if error.errno is not None:  # of the disk; bzip2 has no exception of its own
            raise
        raise ValueError(f"it is damaged: {error}") from error


def unpack(path: Path, target: Path | None) -> None:
    """Check an archive and, with a target, write its checkpoint there.

    Raises:
        ValueError: the archive is not what it should be.
        OSError: something cannot be read or written.
    """
    with open(path, "rb") as file:
        if file.read(512).lstrip().startswith(b"<"):
            raise ValueError("it is a web page, not an archive")
    with zipfile.ZipFile(path) as archive:
        member = check(archive)
        if target is None:
            return
        free = shutil.disk_usage(target.parent).free
        if member.file_size > free:
            raise OSError(f"{member.file_size / 1e9:.1f} GB needed on the disk of {target}, {free / 1e9:.1f} GB free")
        beside = target.with_name(f".{target.name}.part")
        try:
            with archive.open(member) as source, open(beside, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()


def main() -> int:
    """Run the command; return its exit status: 0, 1 for an archive to throw away, 3 for a disk that is to blame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check only")
    parser.add_argument("archive", type=Path)
    parser.add_argument("target", type=Path, nargs="?", help="where the checkpoint goes")
    args = parser.parse_args()
    if args.target is None and not args.check:
        parser.error("a target is needed, or --check")
    try:
        unpack(args.archive, None if args.check else args.target)
    except OSError as error:
        print(f"cannot unpack {args.archive}: {error}", file=sys.stderr)
        return 3
    except (ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        print(f"{args.archive} is refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
