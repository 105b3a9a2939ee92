"""A pool of processes for work that Python does on one core."""

from __future__ import annotations

import collections
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from loky import cpu_count, get_reusable_executor
from loky.process_executor import TerminatedWorkerError

from alol_jax.errors import UserError

Result = TypeVar("Result")

AHEAD = 2  # pieces of work that wait for each process
MOST = 64  # processes; each imports what it runs
IDLE_SECONDS = 5  # after which a process without work ends


def workers_for(pieces: int) -> int:
    """Return how many processes are worth starting for so many pieces of work; 1: none."""
    return max(1, min(cpu_count(), pieces // AHEAD, MOST))


def map_in_processes(
    function: Callable[..., Result], pieces: Iterable[tuple[Any, ...]], *, workers: int
) -> Iterator[Result]:
    """Yield ``function(*piece)`` of each piece, in order.

    Function and pieces are pickled. The processes import what the function needs, but not the
    program that runs; they end when nothing has used them for a while. Only a few pieces are made
    ahead.

    Raises:
        UserError: a process was killed.
    """
    pool = get_reusable_executor(
        max_workers=workers, timeout=IDLE_SECONDS, initializer=_leave_signals_to_the_program
    )
    waiting: collections.deque = collections.deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(function, *piece))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except TerminatedWorkerError as error:
        raise UserError(
            f"one of {workers} worker processes was killed, perhaps for lack of memory: run again "
            "where there is more, or on fewer cores (taskset -c 0-3 python …)"
        ) from error
    except BaseException:  # a failed piece, or the iterator was left: the others are not wanted
        pool.shutdown(kill_workers=True)
        raise


def _leave_signals_to_the_program() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
