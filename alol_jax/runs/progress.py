"""Progress with rate and time left: a bar on a terminal, a plain line every so often elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from alol_jax.types import Interrupted, Watch

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def progress(
    items: Iterable[Item], watch: Watch, *, total: int, done: int = 0
) -> Iterator[Item]:
    """Yields ``items`` and shows the progress on stderr.

    Args:
        items: what is left to do.
        watch: its ``stopping`` is called after every item.
        total: how many items there are in all, those done before included.
        done: how many were done before (a resumed run).

    Raises:
        Interrupted: ``watch.stopping()`` was true before the last item.
    """
    shown = items
    if _terminal():
        shown = tqdm(items, total=total, initial=done, desc=watch.label, leave=False)
    start = said = time.monotonic()
    for count, item in enumerate(shown, done + 1):
        yield item
        if watch.stopping() and count < total:
            raise Interrupted(f"{watch.label}: {count} of {total} were done and will be done again")
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and count < total and not _terminal():
            rate = (count - done) / (now - start)
            left = (total - count) / rate
            line = f"  {watch.label}: {count}/{total}, {rate:.2f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
            said = now


def _terminal() -> bool:
    return sys.stderr.isatty()


def say(line: str) -> None:
    """One line on stdout, above a bar that may stand below."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
