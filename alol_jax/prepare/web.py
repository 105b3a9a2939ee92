"""Downloading a file: resumed, retried and verified. The only module that imports requests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import requests

from alol_jax.errors import UserError
from alol_jax.prepare.units import in_bytes
from alol_jax.runs.progress import progress
from alol_jax.types import Watch

CHUNK = 1 << 20
TRIES = 3  # in a row without a new byte
TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two bytes
AGAIN = frozenset({408, 429, 500, 502, 503, 504})  # worth another try


class _Cut(Exception):
    """The connection broke, or the server asks to come back later."""


class Wanted(NamedTuple):
    """What to download, and what is known of it: ``size`` 0 and ``sha256`` "" are not known."""

    address: str
    target: Path
    size: int = 0
    sha256: str = ""

    @property
    def part(self) -> Path:
        """The file until it is complete."""
        return self.target.with_name(self.target.name + ".part")

    @property
    def origin(self) -> Path:
        """Says of which version of the file the part is."""
        return self.target.with_name(self.target.name + ".part.json")


def download(
    wanted: Wanted,
    *,
    stopping: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download a file. What an earlier attempt left is continued if the server's file is the same.

    Raises:
        UserError: it cannot be had, is another file than expected, or does not fit on the disk.
        Interrupted: ``stopping()`` became true; the next call continues.
    """
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _length(wanted.part)
        try:
            size = _receive(wanted, stopping)
            break
        except _Cut as cut:
            failures = 1 if _length(wanted.part) > before else failures + 1
            if failures == TRIES:
                raise UserError(
                    f"{wanted.address}: {cut}, {TRIES} times in a row: run the same command again "
                    "to continue"
                ) from cut
            sleep(2.0 ** (failures - 1))
    _verify(wanted, size)
    os.replace(wanted.part, wanted.target)
    wanted.origin.unlink(missing_ok=True)


def _receive(wanted: Wanted, stopping: Callable[[], bool]) -> int:
    """Make one request and write what comes. Return the size of the whole file; 0 = not told."""
    start, validator = _resumable(wanted)
    headers = {"Accept-Encoding": "identity"}  # the bytes of the file, which a range can count
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with _answer(wanted.address, headers) as answer:
        if answer.status_code == 416:  # nothing is left to send, or the file is another one now
            if answer.headers.get("Content-Range") == f"bytes */{start}":
                return start
            _forget(wanted)
            raise _Cut("the part that was here does not fit the file any more")
        if answer.status_code != 206:
            start = 0  # the whole file: the server's has changed, or it sends no ranges
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _forget(wanted)
            raise _Cut("the server sent another range than was asked for")
        length = answer.headers.get("Content-Length", "")
        size = start + int(length) if length.isdigit() else 0
        if wanted.size and size and size != wanted.size:
            _forget(wanted)
            raise UserError(
                f"{wanted.address}: the file there has {size} bytes, expected {wanted.size}: it is "
                "another one than that in the table of places"
            )
        _check_space(wanted, (size or wanted.size) - start)
        if not start:
            _remember(wanted, answer)
        broken = False
        try:
            _write(wanted, answer, start, size or wanted.size, stopping)
        except requests.RequestException:
            broken = True
    if broken or (size and _length(wanted.part) < size):
        of = f" of {size}" if size else ""
        raise _Cut(f"the connection was cut after {_length(wanted.part)}{of} bytes")
    return size


@contextlib.contextmanager
def _answer(address: str, headers: dict[str, str]) -> Iterator[requests.Response]:
    """Make a request; what may pass is a `_Cut`, what will not a `UserError`."""
    try:
        with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code in AGAIN:
                raise _Cut(f"the server answers {answer.status_code} ({answer.reason})")
            if answer.status_code not in (200, 206, 416):
                raise UserError(
                    f"{address}: the server answers {answer.status_code} ({answer.reason})"
                )
            # Some servers call a .tgz "encoded": the file is what they send, not what is in it.
            answer.raw.headers.pop("Content-Encoding", None)
            yield answer
    except requests.exceptions.SSLError as error:
        raise UserError(f"{address}: the server's certificate is not valid") from error
    except (requests.ConnectionError, requests.Timeout):
        raise _Cut("no connection") from None
    except requests.RequestException as error:  # a bad address, too many redirects
        raise UserError(f"{address}: {' '.join(str(error).split())}") from error


def _write(
    wanted: Wanted,
    answer: requests.Response,
    start: int,
    size: int,
    stopping: Callable[[], bool],
) -> None:
    chunks = progress(
        answer.iter_content(CHUNK),
        Watch(f"{wanted.target.name}, MiB", stopping=stopping),
        total=-(-size // CHUNK),
        done=start // CHUNK,
    )
    try:
        with wanted.part.open("ab" if start else "wb") as part:
            for chunk in chunks:
                put(part, chunk)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        needed = size - _length(wanted.part)
        raise no_space(wanted.target, max(needed, 0)) from error


def put(stream: IO[bytes], chunk: bytes) -> None:
    """Write a chunk."""
    stream.write(chunk)


def _check_space(wanted: Wanted, needed: int) -> None:
    if needed > shutil.disk_usage(wanted.target.parent).free:
        raise no_space(wanted.target, needed)


def no_space(target: Path, needed: int) -> UserError:
    """An error that says how much there is: the disk is full, or will be."""
    free = shutil.disk_usage(target.parent).free
    asked = f"{in_bytes(needed)} more are needed" if needed else "more is needed"
    return UserError(
        f"{target}: the disk is full: {asked}, {in_bytes(free)} are free in {target.parent}: make "
        "room and run the same command again, which continues"
    )


def _verify(wanted: Wanted, size: int) -> None:
    """Check length and hash of the complete part. One that is wrong is deleted."""
    found, expected = _length(wanted.part), wanted.size or size
    if expected and found != expected:
        _forget(wanted)
        raise UserError(
            f"{wanted.address}: {found} bytes came, expected {expected}; they were deleted"
        )
    if not wanted.sha256:
        return
    with wanted.part.open("rb") as part:
        digest = hashlib.file_digest(part, "sha256").hexdigest()
    if digest != wanted.sha256:
        _forget(wanted)
        raise UserError(
            f"{wanted.address}: the file is not the one expected: sha256 {digest}, expected "
            f"{wanted.sha256}; it was deleted"
        )


def _resumable(wanted: Wanted) -> tuple[int, str]:
    """Return the bytes that are here and the version that they are of; (0, "") to start anew."""
    try:
        origin = json.loads(wanted.origin.read_text(encoding="utf-8"))
        same = origin["address"] == wanted.address and origin["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        same = ""
    here = _length(wanted.part)
    return (here, str(same)) if here and same else (0, "")


def _remember(wanted: Wanted, answer: requests.Response) -> None:
    """Write down the version of the file. A weak ETag does not say that the bytes are the same."""
    etag = answer.headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag
    validator = strong or answer.headers.get("Last-Modified", "")
    told = {"address": wanted.address, "validator": validator}
    wanted.part.unlink(missing_ok=True)
    wanted.origin.write_text(json.dumps(told), encoding="utf-8")


def _forget(wanted: Wanted) -> None:
    wanted.part.unlink(missing_ok=True)
    wanted.origin.unlink(missing_ok=True)


def _length(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
