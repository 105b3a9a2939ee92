"""The lock of a workdir: one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from alol_jax import paths
from alol_jax.devices import processes
from alol_jax.errors import UserError
from alol_jax.paths import AnyPath

LOCK = ".lock"
ALIVE_SECONDS, DEAD_SECONDS = 30.0, 180.0
SHARED = ".shared"  # written by process 0, read by all


@contextlib.contextmanager
def lock_workdir(folder: AnyPath) -> Iterator[None]:
    """Lock the workdir for this run; of several processes the first one holds the lock.

    A local lock ends with its process. One in a bucket is an object, which a killed run leaves. The
    run writes it anew every `ALIVE_SECONDS`, so another one takes it over after `DEAD_SECONDS`
    without a sign of life, and at once if that run was on this machine.

    Raises:
        UserError: another run holds the lock, the bucket cannot be written, or the workdir is not
            one that all hosts share.
    """
    paths.make_folder(folder)
    processes.meet("making the workdir")
    _check_shared(folder)
    if not processes.is_first():
        yield
        return
    with _in_bucket(folder / LOCK) if paths.is_bucket(folder) else _local(folder / LOCK):
        yield


def _check_shared(folder: AnyPath) -> None:
    """Check that every process sees what process 0 writes into the workdir."""
    if processes.count() == 1:
        return
    sign, mine = folder / SHARED, uuid.uuid4().hex
    written = processes.from_first("workdir", lambda: paths.write_text(sign, mine) or mine)
    try:
        seen = paths.read_text(sign) == written
    except FileNotFoundError:
        seen = False
    problem = f"{folder} is another one here: --workdir must be shared by all hosts, or in a bucket"
    processes.check_all("workdir", "" if seen else problem)
    processes.from_first("workdir", lambda: paths.remove(sign))


@contextlib.contextmanager
def _local(file: AnyPath) -> Iterator[None]:
    paths.make_folder(file.parent)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{file.parent}: another run is using this workdir") from error
        yield


@contextlib.contextmanager
def _in_bucket(file: AnyPath) -> Iterator[None]:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "alive": time.time(),
        "id": uuid.uuid4().hex,
    }
    mine = json.dumps(holder)
    try:
        while not paths.create(file, mine):
            _remove_dead(file)
    except FileNotFoundError as error:
        raise UserError(f"{file.parent}: there is no such bucket") from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(file, holder, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        paths.remove(file)


def _beat(file: AnyPath, holder: dict[str, Any], ended: threading.Event) -> None:
    """Write a sign of life into the lock until the run has ended."""
    while not ended.wait(ALIVE_SECONDS):
        with contextlib.suppress(OSError, UserError):  # the next one may arrive
            paths.write_text(file, json.dumps(holder | {"alive": time.time()}))


def _remove_dead(file: AnyPath) -> None:
    """Remove the lock of a run that is no more.

    Raises:
        UserError: the run is still there, or has been until a short while ago.
    """
    try:
        holder = json.loads(paths.read_text(file))
    except FileNotFoundError:
        return  # removed in the meantime
    here = holder["host"] == socket.gethostname()
    silent = time.time() - holder["alive"]
    if silent > DEAD_SECONDS or (here and not _is_running(holder["pid"])):
        paths.remove(file)
        return
    raise UserError(
        f"{file.parent}: another run is using this workdir: process {holder['pid']} on "
        f"{holder['host']}, since {holder['since']}; if that run is dead, start again in "
        f"{max(DEAD_SECONDS - silent, 0):.0f} s, or remove its lock: gcloud storage rm {file}"
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True
