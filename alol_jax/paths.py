"""Paths of local folders and of buckets: the one door to both.

A local path is a `pathlib.Path`; one in a bucket, like ``gs://mine/runs``, is an `epath.Path`,
which Orbax takes too. In a bucket an object is written whole or not at all, nothing is appended to
it, and a folder is no more than what lies in it: nothing here relies on more than that.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from alol_jax.errors import UserError, reason

AnyPath = pathlib.Path | epath.Path

PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
"""Scheme of a bucket -> the package that reaches it."""


def is_bucket(path: AnyPath | str) -> bool:
    """Whether the path is in a bucket."""
    return "://" in str(path)


def path_of(text: AnyPath | str) -> AnyPath:
    """Return the path that the user wrote.

    Raises:
        UserError: it is in a bucket of a kind that cannot be reached.
    """
    if not is_bucket(text):
        return pathlib.Path(text)
    scheme = str(text).split("://")[0]
    if scheme not in PACKAGES:
        raise UserError.unknown(f"{text}: no buckets with {scheme}://", scheme, PACKAGES)
    _files_of(text)
    return epath.Path(str(text))


def workdir_of(text: AnyPath | str) -> AnyPath:
    """Return the path of a workdir.

    Raises:
        UserError: it is in a bucket of a kind that checkpoints cannot be written to.
    """
    if str(text).split("://")[0] in PACKAGES.keys() - {"gs"}:
        raise UserError(f"{text}: a workdir is a local folder or in gs://: checkpoints need it")
    return path_of(text)


def make_folder(folder: AnyPath) -> None:
    """Make a local folder and those above it; a bucket needs none."""
    if not is_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def exists(path: AnyPath) -> bool:
    """Whether there is such a file or folder."""
    if not is_bucket(path):
        return path.exists()
    with _asking(path):
        return _files_of(path).exists(str(path))


def read_text(file: AnyPath) -> str:
    """Return the file's text.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_bucket(file):
        return file.read_text(encoding="utf-8")
    with _asking(file):
        return _files_of(file).cat_file(str(file)).decode("utf-8")


def write_text(file: AnyPath, text: str) -> None:
    """Write the file whole or not at all, in place of what was there."""
    if is_bucket(file):
        with _asking(file):
            _files_of(file).pipe_file(str(file), text.encode("utf-8"))
        return
    fresh = file.with_name(file.name + ".tmp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)


def create(file: AnyPath, text: str) -> bool:
    """Write a file of a bucket if there is none; False if there is one already.

    Args:
        text: of this call alone, so that a request that is sent twice is not taken for two.
    """
    try:
        with _asking(file):
            _files_of(file).pipe_file(str(file), text.encode("utf-8"), mode="create")
    except FileExistsError:
        return read_text(file) == text
    return True


def names(folder: AnyPath) -> list[str]:
    """Return the names of what is in the folder, sorted; none if there is no such folder."""
    if not is_bucket(folder):
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    try:
        with _asking(folder):
            inside = _files_of(folder).ls(str(folder), detail=False)
    except FileNotFoundError:
        return []
    found = {path.rstrip("/").rsplit("/", 1)[-1] for path in inside}
    return sorted(found - {folder.name})  # some tools leave an object for the folder itself


def remove(path: AnyPath) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if is_bucket(path):
        with contextlib.suppress(FileNotFoundError):
            with _asking(path):
                _files_of(path).rm(str(path), recursive=True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move(file: AnyPath, to: AnyPath) -> None:
    """Give a file another name in the same folder."""
    if not is_bucket(file):
        file.rename(to)
        return
    with _asking(to):
        _files_of(file).cp_file(str(file), str(to))
        _files_of(file).rm_file(str(file))
    if _copy_of(file).exists():
        _copy_of(file).replace(_copy_of(to))
        _stamp(to)


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
        with _asking(file):
            _files_of(file).put_file(str(fresh), str(file))
        fresh.replace(copy)
        _stamp(file)
    finally:
        fresh.unlink(missing_ok=True)


def drafts_of(folder: AnyPath) -> pathlib.Path:
    """Return the local folder to write in; `send` puts into a bucket what is there."""
    return _copy_of(folder) if is_bucket(folder) else folder


def send(folder: AnyPath) -> None:
    """Put the files of the `drafts_of` a folder into the bucket, in the order of their names."""
    if is_bucket(folder):
        drafts = drafts_of(folder)
        for file in sorted(drafts.rglob("*")):
            if file.is_file() and not _is_stamp(file):
                target = folder / file.relative_to(drafts)
                with _asking(target):
                    _files_of(target).put_file(str(file), str(target))


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


def local_copy(path: AnyPath | str, wanted: Sequence[str] = ("*",)) -> pathlib.Path:
    """Return a local path with the same content: a copy of what is in a bucket.

    The copy is in the user's cache folder and made again only if the object has changed.

    Args:
        path: a file or a folder; a local one is returned as it is.
        wanted: patterns of the names to copy of a folder.

    Raises:
        UserError: the bucket has no such file or folder, or does not give it.
    """
    if not is_bucket(path):
        return pathlib.Path(path)
    path = path_of(path)
    files = _files_of(path)
    try:
        with _asking(path):
            if files.isfile(str(path)):
                return _refreshed(path)
            inside = files.find(str(path))
    except FileNotFoundError:
        inside = []
    if not inside:
        raise UserError(f"{path}: there is no such file or folder in the bucket")
    scheme, folder = str(path).split("://")[0], _copy_of(path)
    urls = [epath.Path(f"{scheme}://{name}") for name in inside]
    urls = [url for url in urls if any(url.relative_to(path).match(one) for one in wanted)]
    copies = {_refreshed(url) for url in urls}
    for old in folder.rglob("*"):
        if old.is_file() and old not in copies and not _is_stamp(old):
            old.unlink()  # it is in the bucket no more
    return folder


def with_local_copies(options: ConfigDict) -> ConfigDict:
    """Return a section of the config with a local copy in the place of each path of a bucket."""

    def local(value: Any) -> Any:
        if isinstance(value, str):
            return str(local_copy(value)) if value.startswith(_PREFIXES) else value
        if isinstance(value, (tuple, list)):
            return type(value)(map(local, value))
        return with_local_copies(value) if isinstance(value, ConfigDict) else value

    return ConfigDict({key: local(value) for key, value in options.items()})


def cache_folder() -> pathlib.Path:
    """``alol_jax`` in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home, "alol_jax")


_PREFIXES = tuple(f"{scheme}://" for scheme in PACKAGES)


def _files_of(path: AnyPath | str) -> Any:
    """Return fsspec's file system of a bucket; fsspec makes one and keeps it."""
    import fsspec

    scheme = str(path).split("://")[0]
    settings: Mapping[str, bool] = {"use_listings_cache": False}  # another process may write, too
    fsspec.config.conf.setdefault(scheme, dict(settings))
    os.environ.setdefault("EPATH_USE_TF", "false")  # one client for all, also beside TensorFlow
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(
            f"{path}: {scheme}:// needs the package {PACKAGES[scheme]}: "
            f"pip install {PACKAGES[scheme]}"
        ) from error


@contextlib.contextmanager
def _asking(path: AnyPath) -> Iterator[None]:
    """Turn what a bucket refuses into a UserError, but for files that are there or are not."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:  # each client has its own, up to those of its HTTP library
        if not is_bucket(path) or isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {_refusal(error)}") from error


def _refusal(error: Exception) -> str:
    """Say what a bucket's client reports, and the way out where it is known."""
    said = " ".join(str(error).split())
    if any(word in said for word in ("Forbidden", "403", "401", "Anonymous", "AccessDenied")):
        return (
            f"no permission ({said[:120]}): log in, for gs:// with `gcloud auth "
            "application-default login`, or ask for the right to read, write and delete objects"
        )
    return f"the bucket does not answer as it should: {reason(error)}"


def _copy_of(path: AnyPath) -> pathlib.Path:
    """Return where the local copy of a path in a bucket is kept."""
    scheme, inside = str(path).split("://")
    return cache_folder() / "buckets" / scheme / inside


def _refreshed(file: epath.Path) -> pathlib.Path:
    """Return the local copy of an object, made anew if the object has changed."""
    copy, key = _copy_of(file), _files_of(file).ukey(str(file))
    stamp = _stamp_of(copy)
    if not (copy.is_file() and stamp.is_file() and stamp.read_text("utf-8") == key):
        copy.parent.mkdir(parents=True, exist_ok=True)
        fresh = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
        try:
            _files_of(file).get_file(str(file), str(fresh))
            stamp.unlink(missing_ok=True)
            fresh.replace(copy)
            write_text(stamp, key)
        finally:
            fresh.unlink(missing_ok=True)
    return copy


def _stamp(file: AnyPath) -> None:
    """Note that the local copy is that of the object as it is now."""
    write_text(_stamp_of(_copy_of(file)), _files_of(file).ukey(str(file)))


def _stamp_of(copy: pathlib.Path) -> pathlib.Path:
    return copy.with_name(f".{copy.name}.version")


def _is_stamp(file: pathlib.Path) -> bool:
    return file.name.startswith(".") and file.name.endswith(".version")
