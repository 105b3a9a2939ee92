"""Files and folders, local or in a bucket: read, written, listed and removed in one way.

A local path is a `pathlib.Path`; one in a bucket, like ``gs://mine/runs``, is an `epath.Path`,
which Orbax takes too. In a bucket an object is written whole or not at all, nothing is appended to
it, and a folder is no more than what lies in it: nothing here relies on more than that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from etils import epath

from alol_jax.errors import UserError, reason

AnyPath = pathlib.Path | epath.Path

PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
"""Scheme of a bucket -> the package that reaches it."""


def is_bucket(path: AnyPath | str) -> bool:
    """Whether the path is in a bucket."""
    return re.match(r"\w+://", str(path)) is not None


def path_of(text: AnyPath | str) -> AnyPath:
    """Return the path that the user wrote.

    Raises:
        UserError: it is in a bucket of a kind that cannot be reached.
    """
    if not is_bucket(text):
        return pathlib.Path(text).expanduser()
    scheme = str(text).split("://")[0]
    if scheme not in PACKAGES:
        raise UserError.unknown(f"{text}: no buckets with {scheme}://", scheme, PACKAGES)
    files_of(text)
    return epath.Path(str(text))


def workdir_of(text: AnyPath | str) -> AnyPath:
    """Return the path of a workdir.

    Raises:
        UserError: it is in a bucket of a kind that checkpoints cannot be written to.
    """
    if str(text).split("://")[0] in PACKAGES.keys() - {"gs"}:
        raise UserError(f"{text}: a workdir is a local folder or in gs://: checkpoints need it")
    return path_of(text)


def resolve(path: AnyPath | str) -> AnyPath:
    """Return the path from the root, without symbolic links; one of a bucket is so already."""
    path = path_of(path)
    return path if is_bucket(path) else path.resolve()


def make_folder(folder: AnyPath) -> None:
    """Make a local folder and those above it; a bucket needs none."""
    if not is_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def exists(path: AnyPath) -> bool:
    """Whether there is such a file or folder."""
    if not is_bucket(path):
        return path.exists()
    with asking(path):
        return files_of(path).exists(str(path))


def is_folder(path: AnyPath) -> bool:
    """Whether there is such a folder; in a bucket, whether there is something in it."""
    return bool(names(path)) if is_bucket(path) else path.is_dir()


def read_text(file: AnyPath) -> str:
    """Return the file's text.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_bucket(file):
        return file.read_text(encoding="utf-8")
    with asking(file):
        return files_of(file).cat_file(str(file)).decode("utf-8")


def write_text(file: AnyPath, text: str) -> None:
    """Write the file whole or not at all, in place of what was there."""
    if is_bucket(file):
        with asking(file):
            files_of(file).pipe_file(str(file), text.encode("utf-8"))
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
        with asking(file):
            files_of(file).pipe_file(str(file), text.encode("utf-8"), mode="create")
    except FileExistsError:
        return read_text(file) == text
    return True


def names(folder: AnyPath) -> list[str]:
    """Return the names of what is in the folder, sorted; none if there is no such folder."""
    if not is_bucket(folder):
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    try:
        with asking(folder):
            inside = files_of(folder).ls(str(folder), detail=False)
    except FileNotFoundError:
        return []
    found = {path.rstrip("/").rsplit("/", 1)[-1] for path in inside}
    return sorted(found - {folder.name})  # some tools leave an object for the folder itself


def remove(path: AnyPath) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if is_bucket(path):
        with contextlib.suppress(FileNotFoundError):
            with asking(path):
                files_of(path).rm(str(path), recursive=True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files_of(path: AnyPath | str) -> Any:
    """Return fsspec's file system of a bucket; fsspec makes one and keeps it."""
    import fsspec

    scheme = str(path).split("://")[0]
    fsspec.config.conf.setdefault(scheme, {"use_listings_cache": False})  # others write, too
    os.environ.setdefault("EPATH_USE_TF", "false")  # one client for all, also beside TensorFlow
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs, it raises too
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(
            f"{path}: {scheme}:// needs the package {PACKAGES[scheme]}: "
            f"pip install {PACKAGES[scheme]}"
        ) from error


@contextlib.contextmanager
def asking(path: AnyPath) -> Iterator[None]:
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
    refused = isinstance(error, PermissionError) or said.startswith("Forbidden")
    if refused or str(getattr(error, "code", "")) in ("401", "403") or "credentials" in said:
        return (
            f"no permission ({said[:120]}): log in, for gs:// with `gcloud auth "
            "application-default login`, or ask for the right to read, write and delete objects"
        )
    return f"the bucket does not answer as it should: {reason(error)}"
