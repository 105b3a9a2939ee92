"""The processes of a run: one per host or per GPU, started together, each with its own devices.

The only file that asks which process this is. `jax.distributed` connects them, notices which one is
gone, and agrees on the step at which all of them stop. The same program runs in every process. The
first one, process 0, writes and prints.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from alol_jax.devices.hardware import COORDINATOR_PORT
from alol_jax.errors import UserError, reason

HEARTBEAT_SECONDS = 20  # without a sign of life, until a process counts as gone
START_SECONDS = 300  # until all processes of a run must have started
MEET_SECONDS = 300  # until all must have reached the same place


def start(how: str) -> None:
    """Connect the processes of the run. Call it before JAX sees a device.

    Args:
        how: "auto" connects what a TPU pod, GKE, Slurm or Open MPI has started, at port
            ``JAX_COORDINATOR_PORT`` of process 0 (default: `COORDINATOR_PORT`), and nothing
            elsewhere; "off" connects nothing; "HOST:PORT,RANK,COUNT" is this process's rank among
            COUNT, and where process 0 listens.

    Raises:
        UserError: ``how`` cannot be read, or the processes did not find each other.
    """
    if how == "off":
        return
    place = {} if how == "auto" else _read(how)
    os.environ.setdefault("JAX_COORDINATOR_PORT", str(COORDINATOR_PORT))  # for "auto"
    jax.config.update("jax_enable_recoverability", True)  # report a lost process, do not abort
    try:
        with _errors_raised():
            jax.distributed.initialize(
                **place,
                initialization_timeout=START_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except ValueError as error:
        if how != "auto" or "coordinator_address" not in str(error):
            raise UserError(f"--distributed={how}: {reason(error)}") from error
        return  # nothing has started several processes
    except RuntimeError as error:
        raise UserError(
            f"--distributed={how}: the processes did not find each other within {START_SECONDS} s: "
            "can this one reach the port of process 0, is the port free there, has every process "
            "the same COUNT, and none the RANK of another?"
        ) from error


@contextlib.contextmanager
def _errors_raised() -> Iterator[None]:
    """Let jaxlib raise RuntimeError where it cannot connect; by itself it aborts the process.

    It does so for a client with a callback for lost connections, which JAX makes without one.
    """
    library = distributed._jax
    make = functools.partial(
        library.get_distributed_runtime_client, missed_heartbeat_callback=lambda *_: None
    )
    names = vars(library) | {"get_distributed_runtime_client": make}
    distributed._jax = types.SimpleNamespace(**names)
    try:
        yield
    finally:
        distributed._jax = library


def _read(how: str) -> dict[str, Any]:
    try:
        address, rank, count = how.split(",")
        host, _, port = address.rpartition(":")
        place = {"process_id": int(rank), "num_processes": int(count)}
    except ValueError:
        raise UserError(
            f"--distributed={how}: expected auto, off or HOST:PORT,RANK,COUNT"
        ) from None
    if not 0 <= place["process_id"] < place["num_processes"]:
        raise UserError(f"--distributed={how}: RANK must be from 0 to COUNT - 1")
    if not host or not port.isdigit():
        raise UserError(f"--distributed={how}: {address!r} is not HOST:PORT")
    return {"coordinator_address": address, **place}


# Which process this is


def count() -> int:
    """Return the number of processes of the run."""
    return distributed.global_state.num_processes or 1


def rank() -> int:
    """Return the number of this process."""
    return distributed.global_state.process_id or 0


def is_first() -> bool:
    """Return whether this is process 0, which writes and prints."""
    return rank() == 0


def named(number: int) -> str:
    """Name a process by its number and its host."""
    try:
        host = client().blocking_key_value_get(f"alol_jax/host/{number}", 1000)
    except RuntimeError:
        return f"process {number}"
    return f"process {number} ({host})"


def client() -> Any:
    """Return JAX's connection to process 0."""
    return distributed.global_state.client


# Agreement


class _Meetings:
    """Numbers the exchanges of a run; all processes have the same ones in the same order."""

    def __init__(self) -> None:
        self.done = 0

    def next(self, name: str) -> str:
        self.done += 1
        return f"alol_jax/{self.done}/{name}"


_MEETINGS = _Meetings()


def meet(name: str, *, seconds: float = MEET_SECONDS) -> None:
    """Wait until all processes are here.

    Raises:
        UserError: some did not come in time; the message names them.
    """
    if count() == 1:
        return
    try:
        client().wait_at_barrier(_MEETINGS.next(name), int(seconds * 1000))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        missing = [named(int(line)) for line in lines if line.isdigit()]
        raise UserError(
            f"{name}: waited {seconds:.0f} s for {', '.join(missing) or reason(error)}"
        ) from error


def gather(name: str, value: Any) -> list[Any]:
    """Return the JSON ``value`` of every process, by its number."""
    if count() == 1:
        return [value]
    key, service = _MEETINGS.next(name), client()
    service.key_value_set(f"{key}/{rank()}", json.dumps(value))
    wait = int(MEET_SECONDS * 1000)
    found = []
    for number in range(count()):
        try:
            found.append(json.loads(service.blocking_key_value_get(f"{key}/{number}", wait)))
        except RuntimeError as error:
            raise UserError(f"{name}: waited {MEET_SECONDS} s for {named(number)}") from error
    return found


def from_first(name: str, make: Callable[[], Any]) -> Any:
    """Return the JSON value that ``make`` gives in process 0, where alone it is called.

    The others wait for as long as it takes.

    Raises:
        UserError: ``make`` raised it; in every process, in the others with the name of the first.
    """
    if count() == 1:
        return make()
    key, service = _MEETINGS.next(name), client()
    if is_first():
        try:
            found = {"value": make()}
        except (UserError, OSError) as error:
            service.key_value_set(key, json.dumps({"error": str(error)}))
            raise
        service.key_value_set(key, json.dumps(found))
        return found["value"]
    while (said := _within(key, seconds=60)) is None:
        pass
    found = json.loads(said)
    if "error" in found:
        raise UserError(f"{named(0)}: {found['error']}")
    return found["value"]


def _within(key: str, *, seconds: float) -> str | None:
    try:
        return client().blocking_key_value_get(key, int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise


def check_all(name: str, problem: str) -> None:
    """Raise the first problem of any process in all of them, with its name; "" is none.

    Raises:
        UserError: a process has a problem.
    """
    for number, found in enumerate(gather(name, problem)):
        if found:
            raise UserError(f"{named(number)}: {found}" if count() > 1 else found)


class StopTogether:
    """Tells whether the run should stop; true in all processes at the same call, or in none.

    SIGTERM in any process is enough, as JAX's preemption service hands it on.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._calls, self._stop, self._say = 0, False, say

    def __call__(self) -> bool:
        if not self._stop:
            self._stop = multihost_utils.reached_preemption_sync_point(self._calls)
            self._calls += 1
            if self._stop:
                self._say("stopping at this point; all processes were asked to")
        return self._stop
