"""Progress with rate and time left: a bar on a terminal, a plain line every so often elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from alol_jax.types import Interrupted

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def never() -> bool:
    """Nobody asks to stop."""
    return False


def progress(
    items: Iterable[Item],
    *,
    total: int,
    label: str,
    done: int = 0,
    stopping: Callable[[], bool] = never,
) -> Iterator[Item]:
    """Yields ``items`` and shows on stderr how far it is.

    Args:
        items: what is left to do.
        total: how many there are in all, those done before included.
        label: what is being done.
        done: how many were done before (a resumed run).
        stopping: asked after every item; for loops that keep nothing when they are stopped.

    Raises:
        Interrupted: ``stopping()`` was true before the last item.
    """
    shown = (
        tqdm(items, total=total, initial=done, desc=label, leave=False) if _terminal() else items
    )
    start = said = time.monotonic()
    for count, item in enumerate(shown, done + 1):
        yield item
        if stopping() and count < total:
            raise Interrupted(f"{label}: {count} of {total} were done and will be done again")
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and count < total and not _terminal():
            rate = (count - done) / (now - start)
            left = (total - count) / rate
            line = f"  {label}: {count}/{total}, {rate:.2f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
            said = now


def _terminal() -> bool:
    return sys.stderr.isatty()


def say(line: str) -> None:
    """One line on stdout, above a bar that may stand below."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
