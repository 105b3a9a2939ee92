"""Unpacking the wanted members of a zip or tar archive, and no others."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from alol_jax.errors import UserError, format_names, reason
from alol_jax.prepare.web import no_space

SUFFIXES = (".zip", ".tgz", ".tar.gz", ".tar")
_TEMPORARY = ".unpacking"
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error)


class _Member(NamedTuple):
    """A plain file in an archive."""

    name: str
    stream: IO[bytes]


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked."""
    return name.endswith(SUFFIXES)


def unpack(archive: Path, files: Mapping[str, str]) -> list[Path]:
    """Unpack members to local paths. What exists already is left alone.

    A member is found by the end of its name, in whole parts: "a/b.json" is also "x/a/b.json". A
    folder (with a final "/") becomes a directory with the plain files below it; several folders may
    become one directory. Links and other
    special members are never unpacked. A damaged archive is deleted, so that the next run fetches
    it again.

    Args:
        archive: a zip or tar file.
        files: end of a member's or folder's name -> local path.

    Returns:
        The local paths that are new.

    Raises:
        UserError: the archive is damaged or lacks a member, or the disk is full. Local paths that
            are not complete do not exist.
    """
    wanted = {end: Path(local) for end, local in files.items() if not Path(local).exists()}
    for local in wanted.values():
        _delete(_temporary(local))
    try:
        found = _copy(archive, wanted)
    except _DAMAGE as error:
        archive.unlink()
        raise UserError(
            f"{archive}: the archive is damaged ({reason(error)}): it was deleted, the same "
            "command fetches it again"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise no_space(archive, 0) from error
    else:
        missing = sorted(wanted.keys() - found)
        if missing:
            raise UserError(
                f"{archive}: holds no {format_names(missing)}: what is published has changed; "
                "look into the archive and put its files in place by hand"
            )
        for local in dict.fromkeys(wanted.values()):
            os.replace(_temporary(local), local)
    finally:
        for local in wanted.values():
            _delete(_temporary(local))
    return list(dict.fromkeys(wanted.values()))


def _copy(archive: Path, wanted: Mapping[str, Path]) -> set[str]:
    """Copy the members to temporary paths. Return the keys of ``wanted`` that were found."""
    found: set[str] = set()
    for member in _members(archive):
        parts = PurePosixPath(member.name).parts
        for end, local in wanted.items():
            inside = _inside(parts, PurePosixPath(end).parts, folder=end.endswith("/"))
            if inside is None:
                continue
            target = _temporary(local).joinpath(*inside)
            if target.exists():
                raise UserError(f"{archive}: holds two members {end}: unpack it by hand")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(member.stream, out, 1 << 20)
            found.add(end)
            break
    return found


def _inside(
    parts: tuple[str, ...], end: tuple[str, ...], *, folder: bool
) -> tuple[str, ...] | None:
    """Return the rest of a member's path below the wanted one, () for a file; None for others."""
    if not folder:
        return () if parts[-len(end) :] == end else None
    for start in range(len(parts) - len(end)):
        if parts[start : start + len(end)] == end:
            return parts[start + len(end) :]
    return None


def _members(archive: Path) -> Iterator[_Member]:
    """Yield the plain files of the archive, in its order."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                plain = not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
                if plain and _is_safe(info.filename):
                    with _opened(archive, opened, info) as stream:
                        yield _Member(info.filename, stream)
        return
    with archive.open("rb") as file:
        start = file.read(15)
    if start.startswith(b"PK"):
        raise zipfile.BadZipFile("its end is missing")
    if start.lstrip()[:1] == b"<":
        raise zipfile.BadZipFile("it is a web page, not an archive")
    with tarfile.open(archive) as opened:
        for info in opened:
            if info.isreg() and _is_safe(info.name):
                yield _Member(info.name, opened.extractfile(info))


def _opened(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return opened.open(info)
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
        raise UserError(f"{archive}: {info.filename} cannot be read: {reason(error)}") from error


def _is_safe(name: str) -> bool:
    """Whether a member's name stays below where it is unpacked."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _temporary(local: Path) -> Path:
    return local.with_name(local.name + _TEMPORARY)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
