"""Where pictures lie: in folders, in files of one or more frames, in lists and in zip archives. Imports no torch."""

import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from data.picture_files import MAX_BYTES, SUFFIXES, VIDEO_SUFFIXES
from data.picture_headers import read_header
from data.picture_list import read_list
from data.picture_names import below, picture_names
from util.errors import UserError

# What reading a member of a damaged or encrypted zip archive may raise.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError),
    *(KeyError, NotImplementedError, RuntimeError),
)
Frames = Literal["first", "all"]


@dataclass(frozen=True)
class Source:
    """Where one picture lies.

    Attributes:
        path: the file, or the zip archive that holds it.
        own: its path below the folder, archive or list that it was found by.
        member: its path within the archive; None where ``path`` is the picture.
        frame: which frame of the file, from 0; None takes the first, and whoever reads it says that there are others.
        label: its class, where a list gives one.
    """

    path: Path
    own: Path
    member: str | None = None
    frame: int | None = None
    label: int | None = None

    def __str__(self) -> str:
        frame = "" if self.frame is None else f", frame {self.frame}"
        return (str(self.path) if self.member is None else f"{self.path}:{self.member}") + frame

    @property
    def suffix(self) -> str:
        """The ending of the picture's file name, in lower case."""
        return Path(self.member or self.path).suffix.lower()

    @property
    def stream_name(self) -> str:
        """The name that the picture would have if there were no other.

        A picture with the same stem beside it changes the names of both, and by this name no result of either. The two
        then have the same draws.
        """
        return picture_names([below(self.own)], [self.own])[0]

    def content(self) -> bytes | None:
        """Return the bytes of an archive's member; None for a file, which is better read where it lies.

        Raises:
            UserError: the archive is damaged or encrypted, or the member is too large to be a picture.
        """
        if self.member is None:
            return None
        return _read_member(_archive(self.path), self.member)


class Picture(NamedTuple):
    """A picture and the name under which its results are written (no suffix, no folder)."""

    name: str
    source: Source


class Origin(NamedTuple):
    """The picture that an image or a measurement was read from.

    Attributes:
        name: under which results are written.
        source: where it lies; None where that is not known.
        resize: how it was brought to the image's size, as `read_pixels` has it.
    """

    name: str
    source: Source | None = None
    resize: str = "error"


def source_of(path: "str | Path | Source") -> Source:
    """Return a plain file as a source; a source stays as it is."""
    return path if isinstance(path, Source) else Source(Path(path), Path(Path(path).name))


def find_pictures(
    root: str | Path,
    suffixes: Sequence[str] = SUFFIXES,
    frames: Frames = "first",
    data_root: str | Path | None = None,
) -> list[Picture]:
    """List the pictures (files of these suffixes) below a folder, sorted by relative path.

    Subfolders are searched; links are followed, and a folder that is reached twice (a loop of links) is listed once.
    Hidden files and folders are left out. A link that leads nowhere is listed: reading it says so.

    Args:
        root: a folder; a picture, which is then the only one; a .txt file that lists pictures, which come in its order
            (`read_list`), each called by its path without ``..`` and the root; or a .zip archive of pictures.
        suffixes: the endings of what counts as a picture in folders and archives.
        frames: with ``all`` each frame (or page) of a file that has several is a picture, NAME_000 and so on.
        data_root: where the paths in a list begin; None is the list's own folder.

    Raises:
        UserError: ``root`` does not exist, a folder, list or archive cannot be read, there is no picture, ``root`` is a
            video, two pictures would have one name, or ``data_root`` is given without a list or is no folder.
    """
    root = Path(root)
    is_list = os.path.isfile(root) and root.suffix.lower() == ".txt"
    if data_root is not None and not (is_list and os.path.isdir(data_root)):
        wrong = "it is no folder" if is_list else f"{str(root)!r} is no .txt file that lists pictures"
        raise UserError(f"data_root {str(data_root)!r} says where the paths in a list begin: {wrong}")
    if is_list:
        sources = list(_listed(root, root.parent if data_root is None else Path(data_root)))
    elif os.path.isfile(root):
        sources = list(_in_file(root, suffixes))
    elif os.path.isdir(root):
        paths = sorted(_walk(root, suffixes), key=lambda path: path.as_posix())
        sources = [Source(root / path, path) for path in paths]
    else:
        raise UserError(f"{str(root)!r}: no such file or folder of pictures")
    if not sources:
        kind = "folder" if os.path.isdir(root) else "archive"
        raise UserError(f"{str(root)!r}: no pictures in this {kind} (looked for {' '.join(suffixes)})")
    if frames == "all":
        sources = [frame for source in sources for frame in _frames(source)]
    names = picture_names([below(source.own) for source in sources], _told_apart(sources))
    pictures = {name: Picture(name, source) for name, source in zip(names, sources, strict=True)}
    for name, source in zip(names, sources, strict=True):
        if pictures[name].source != source:
            both = f"{str(source)!r} and {str(pictures[name].source)!r}"
            raise UserError(f"{both} would both have results called {name!r}: rename one of them")
    return list(pictures.values())


def _told_apart(sources: Sequence[Source]) -> list[Path]:
    """Return a path for each source that no other has: a frame may be called as a file beside it (x_000.gif)."""
    count = Counter(source.own for source in sources)
    return [
        source.own.with_name(f"{source.own.name}#{source.frame}")
        if count[source.own] > 1 and source.frame is not None
        else source.own
        for source in sources
    ]


def _listed(path: Path, root: Path) -> Iterator[Source]:
    """Yield what a list names, each picture once."""
    seen = set()
    for written, label in read_list(path, root):
        full = root / written
        own = full.relative_to(root) if full.is_relative_to(root) else full
        if own in seen:
            raise UserError(f"{str(path)!r}: {str(own)!r} is listed twice, the second time as {str(written)!r}")
        seen.add(own)
        yield Source(full, own, label=label)


def _in_file(path: Path, suffixes: Sequence[str]) -> Iterator[Source]:
    """Yield a picture, or the members of an archive in sorted order."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise UserError(
            f"{str(path)!r} is a video, and frames of videos are not read: save them as pictures first, as "
            "`ffmpeg -i VIDEO frames/%05d.png` does"
        )
    if path.suffix.lower() != ".zip":
        yield Source(path, Path(path.name))
        return
    seen: set[Path] = set()
    for member in sorted(info.filename for info in _archive(path).infolist() if not info.is_dir()):
        parts = Path(member).parts
        is_hidden = any(map(_is_hidden, parts)) or "__MACOSX" in parts
        if Path(member).suffix.lower() in suffixes and not is_hidden:
            if Path(member) in seen:
                raise UserError(f"{str(path)!r}: {member!r} is in this archive twice: unpack it, and keep one")
            seen.add(Path(member))
            yield Source(path, Path(member), member=member)


def _walk(root: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yield the paths, relative to ``root``, of all files of these suffixes."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{str(error.filename)!r}: cannot read this folder: {error.strerror}") from None

    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            path = Path(folder, name)
            is_special = os.path.exists(path) and not os.path.isfile(path)  # a pipe would block its reader for ever
            if path.suffix.lower() in suffixes and not _is_hidden(name) and not is_special:
                yield path.relative_to(root)


def _is_hidden(name: str) -> bool:
    """Tell whether a file is hidden, as ``.a.png`` is; ``..png`` is an odd name."""
    return name.startswith(".") and not name.startswith("..")


def _frames(source: Source) -> list[Source]:
    """Return each frame of a file as a source of its own; of a file that cannot be read the file itself."""
    try:
        count = read_header(source.path, source.content()).frames
    except UserError:  # told by whoever checks the pictures, together with all others
        return [source]
    own = source.own
    return (
        [source]
        if count == 1
        else [
            replace(source, frame=index, own=own.with_name(f"{own.stem}_{index:03}{own.suffix}"))
            for index in range(count)
        ]
    )


def _archive(path: Path) -> zipfile.ZipFile:
    """Return an open archive, whose directory takes long to read where it is large."""
    try:
        return _opened_archive(path, path.stat().st_mtime_ns, os.getpid())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{str(path)!r}: cannot read this archive: {error}") from error


@lru_cache(maxsize=4)
def _opened_archive(path: Path, changed: int, process: int) -> zipfile.ZipFile:
    """Open an archive once for each version of it, and for each process: forks would share one place in the file."""
    return zipfile.ZipFile(path)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member of an archive.

    Raises:
        UserError: it is not there, damaged or encrypted, or declares more bytes than a picture has.
    """
    shown = f"{str(archive.filename)!r}: {name!r}"
    try:
        if archive.getinfo(name).file_size > MAX_BYTES:
            raise UserError(f"{shown} is larger than a picture may be ({MAX_BYTES:,} bytes)")
        return archive.read(name)
    except _DAMAGE as error:
        raise UserError(f"{shown} cannot be read: {error}") from error
