"""All processes of a run end if one of them fails or is lost, and one line says which and why."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import jax

from alol_jax.devices.processes import (
    HEARTBEAT_SECONDS,
    START_SECONDS,
    client,
    count,
    is_first,
    meet,
    named,
    rank,
)
from alol_jax.errors import Finished, Interrupted, UserError

SAME_SECONDS = 1.0  # for the others to fail as well, with what is wrong for all
LEAVE_SECONDS = 3  # for the others to end before process 0, which connects them
FAILED = 2  # exit code
FAILURES = "alol_jax/failed/"


@contextlib.contextmanager
def together(words: Callable[[Exception], str]) -> Iterator[None]:
    """Run a program so that all processes end if one of them fails or is lost.

    Process 0 prints one line that names the process and what it said, and all exit with code 2. A
    line that all processes say, as of a wrong config, names none.

    Args:
        words: of an error, in one line.
    """
    if count() == 1:
        yield
        return
    client().key_value_set(f"alol_jax/host/{rank()}", socket.gethostname())
    ending = threading.Event()
    watchers = [
        threading.Thread(target=watch, args=(ending,), daemon=True)
        for watch in (_watch_failures, _watch_lost)
    ]
    for watcher in watchers:
        watcher.start()
    try:
        _check_count()
        yield
        _leave(ending, watchers)
    except (Finished, Interrupted, SystemExit):
        _leave(ending, watchers)
        raise
    except BaseException as error:
        if not isinstance(error, (UserError, OSError)):  # another process may be gone:
            time.sleep(HEARTBEAT_SECONDS + 10)  # then a watcher ends this one
            traceback.print_exception(error)
        ending.set()
        client().key_value_set(f"{FAILURES}{rank()}", words(error))
        _end(f"error: {_of_first(words(error))}" if is_first() else "")


def _of_first(said: str) -> str:
    """Name process 0 in what it says, unless all processes say the same."""
    time.sleep(SAME_SECONDS)
    failures = client().key_value_dir_get(FAILURES)
    alike = sum(other == said for _, other in failures)
    return said if alike == count() else f"{named(0)}: {said}"


def _check_count() -> None:
    """Raise UserError if process 0 was started with another COUNT."""
    key, service = "alol_jax/count", client()
    if is_first():
        service.key_value_set(key, str(count()))
    theirs = int(service.blocking_key_value_get(key, 1000 * START_SECONDS))
    if theirs != count():
        raise UserError(f"--distributed: COUNT is {count()} here, and {theirs} in process 0")


def _leave(ending: threading.Event, watchers: list[threading.Thread]) -> None:
    """Leave the run with all others; process 0, which connects them, as the last one."""
    meet("the end of the run")
    ending.set()
    if is_first():
        time.sleep(LEAVE_SECONDS)
    jax.distributed.shutdown()  # which ends a watcher's call
    for watcher in watchers:
        watcher.join(LEAVE_SECONDS)


def _watch_failures(ending: threading.Event) -> None:
    """End this process once another one has failed."""
    service = client()
    while not ending.wait(0.5):
        try:
            failures = service.key_value_dir_get(FAILURES)
        except RuntimeError:
            return  # process 0 is gone, and JAX ends this one
        # This process may fail as well, and say so itself.
        if not failures or ending.wait(SAME_SECONDS):
            continue
        key, said = min(failures)
        number = int(key.rpartition("/")[2])
        _end(f"error: {named(number)}: {said}" if is_first() else "")


def _watch_lost(ending: threading.Event) -> None:
    """End this process once another one is gone."""
    everyone, service = list(range(count())), client()
    while not ending.wait(0.5):
        try:
            live = service.get_live_nodes(everyone)  # waits for all that are not gone
        except RuntimeError:
            return
        lost = [number for number in everyone if number not in live]
        if not lost or ending.wait(1.0):
            continue
        names = ", ".join(map(named, lost))
        line = f"error: {names} ended: run the same command again to go on"
        _end(line if rank() == min(live) else "")


def _end(line: str) -> None:
    """Print the line, if any, and end the process at once; process 0 after the others."""
    if line:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    if is_first():
        time.sleep(LEAVE_SECONDS)
    sys.stdout.flush()
    os._exit(FAILED)
