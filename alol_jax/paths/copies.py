"""Local copies of what is in a bucket: for what needs a file of this machine.

Tables are mapped into memory, models are read piece by piece, and what grows or is made of many
files is written here first. A local path is its own copy.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from alol_jax.errors import UserError
from alol_jax.paths.store import (
    PACKAGES,
    AnyPath,
    asking,
    files_of,
    is_bucket,
    path_of,
    remove,
    write_text,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict


HOME = "~/"  # the user's folder


def local_copy(path: AnyPath | str, wanted: Sequence[str] = ("*",)) -> pathlib.Path:
    """Return a local path with the same content: a copy of what is in a bucket.

    The copy is in the user's cache folder and made again only if the object has changed.

    Args:
        path: a file or a folder; a local one is returned as it is.
        wanted: patterns of what to copy of a folder.

    Raises:
        UserError: the bucket has no such file or folder, or does not give it.
    """
    if not is_bucket(path):
        return pathlib.Path(path).expanduser()
    path = path_of(path)
    files = files_of(path)
    try:
        with asking(path):
            if files.isfile(str(path)):
                return _refreshed(path)
            inside = files.find(str(path))
    except FileNotFoundError:
        inside = []
    if not inside:
        raise UserError(f"{path}: there is no such file or folder in the bucket")
    scheme, folder = str(path).split("://")[0], _copy_of(path)
    urls = [epath.Path(f"{scheme}://{name}") for name in inside]
    copies = {_refreshed(url) for url in urls if _matches(url.relative_to(path), wanted)}
    for old in folder.rglob("*"):
        if old.is_file() and old not in copies and _matches(old.relative_to(folder), wanted):
            old.unlink()  # it is in the bucket no more
    return folder


def with_local_copies(options: ConfigDict) -> ConfigDict:
    """Return a section of the config with a local path in the place of each path of a bucket, and
    of each that begins with ``~/``."""
    return _with_paths(options, (*_PREFIXES, HOME), local_copy)


def with_home(options: ConfigDict) -> ConfigDict:
    """Return a section of the config with the user's folder in the place of each ``~/``."""
    return _with_paths(options, (HOME,), lambda text: pathlib.Path(text).expanduser())


def _with_paths(
    options: ConfigDict, beginnings: tuple[str, ...], path: Callable[[str], pathlib.Path]
) -> ConfigDict:
    """Apply ``path`` to all texts that begin so, in tuples and inner sections too."""

    def found(value: Any) -> Any:
        if isinstance(value, str):
            return str(path(value)) if value.startswith(beginnings) else value
        if isinstance(value, (tuple, list)):
            return type(value)(map(found, value))
        inner = isinstance(value, type(options))
        return _with_paths(value, beginnings, path) if inner else value

    return type(options)({key: found(value) for key, value in options.items()})


@contextlib.contextmanager
def written(file: AnyPath) -> Iterator[pathlib.Path]:
    """Yield the local file to write; one of a bucket is sent there when it is complete."""
    if not is_bucket(file):
        yield file
        return
    copy = _copy_of(file)
    copy.parent.mkdir(parents=True, exist_ok=True)
    fresh = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
    try:
        yield fresh
        with asking(file):
            files_of(file).put_file(str(fresh), str(file))
        fresh.replace(copy)
        _stamp(file)
    finally:
        fresh.unlink(missing_ok=True)


def move(file: AnyPath, to: AnyPath) -> None:
    """Give a file another name in the same folder."""
    if not is_bucket(file):
        file.rename(to)
        return
    with asking(to):
        files_of(file).cp_file(str(file), str(to))
        files_of(file).rm_file(str(file))
    if _copy_of(file).exists():
        _copy_of(file).replace(_copy_of(to))
        _stamp(to)


@contextlib.contextmanager
def new_folder(out: AnyPath) -> Iterator[pathlib.Path]:
    """Yield a local folder to fill, which becomes ``out`` on success and is deleted on failure.

    Raises:
        UserError: a killed program left such a folder; the bucket cannot be written.
    """
    if is_bucket(out):
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder)
            try:
                _send_all(pathlib.Path(folder), out)
            except BaseException:
                remove(out)
                raise
        return
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        raise UserError(f"{partial} was left by a program that was killed: delete it")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def drafts_of(folder: AnyPath) -> pathlib.Path:
    """Return the local folder to write in, an empty one for a bucket, where `send` puts it."""
    if not is_bucket(folder):
        return folder
    shutil.rmtree(_copy_of(folder), ignore_errors=True)  # what is there may be of another run
    return _copy_of(folder)


def send(folder: AnyPath) -> None:
    """Put the files of the `drafts_of` a folder into the bucket."""
    if is_bucket(folder):
        _send_all(_copy_of(folder), folder)


class Appended:
    """A text file that grows by lines.

    A local file grows with every `write`. An object of a bucket cannot grow: `keep` writes it anew,
    from a local copy.
    """

    def __init__(self, file: AnyPath, text: str):
        """Begin with ``text``, in place of what was there."""
        self._file = file
        local = _copy_of(file) if is_bucket(file) else file
        local.parent.mkdir(parents=True, exist_ok=True)
        write_text(local, text)
        self._local, self._stream = local, local.open("a", encoding="utf-8")

    def write(self, text: str) -> None:
        """Append the text."""
        self._stream.write(text)
        self._stream.flush()

    def keep(self) -> None:
        """Make sure that what was written is there after this process was killed."""
        if is_bucket(self._file):
            write_text(self._file, self._local.read_text(encoding="utf-8"))

    def close(self) -> None:
        """Keep what was written, and close the file."""
        self._stream.close()
        self.keep()


def cache_folder() -> pathlib.Path:
    """``alol_jax`` in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home, "alol_jax")


_PREFIXES = tuple(f"{scheme}://" for scheme in PACKAGES)


def _send_all(files: pathlib.Path, folder: AnyPath) -> None:
    """Put all files of a local folder into a folder of a bucket."""
    for file in sorted(files.rglob("*")):
        if file.is_file():
            target = folder / str(file.relative_to(files))
            with asking(target):
                files_of(target).put_file(str(file), str(target))


def _matches(path: pathlib.PurePath, wanted: Sequence[str]) -> bool:
    return not _is_stamp(path) and any(fnmatch.fnmatch(str(path), one) for one in wanted)


def _copy_of(path: AnyPath) -> pathlib.Path:
    """Return where the local copy of a path in a bucket is kept."""
    scheme, inside = str(path).split("://")
    return cache_folder() / "buckets" / scheme / inside


def _refreshed(file: epath.Path) -> pathlib.Path:
    """Return the local copy of an object, made anew if the object has changed."""
    copy, key = _copy_of(file), _key(file)
    stamp = _stamp_of(copy)
    if not (copy.is_file() and stamp.is_file() and stamp.read_text("utf-8") == key):
        copy.parent.mkdir(parents=True, exist_ok=True)
        fresh = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
        try:
            with asking(file):
                files_of(file).get_file(str(file), str(fresh))
            stamp.unlink(missing_ok=True)
            fresh.replace(copy)
            write_text(stamp, key)
        finally:
            fresh.unlink(missing_ok=True)
    return copy


def _stamp(file: AnyPath) -> None:
    """Note that the local copy is that of the object as it is now."""
    write_text(_stamp_of(_copy_of(file)), _key(file))


def _key(file: AnyPath) -> str:
    """Return what tells one version of an object from another."""
    with asking(file):
        return files_of(file).ukey(str(file))


def _stamp_of(copy: pathlib.Path) -> pathlib.Path:
    return copy.with_name(f".{copy.name}.version")


def _is_stamp(file: pathlib.PurePath) -> bool:
    return file.name.startswith(".") and file.name.endswith(".version")
