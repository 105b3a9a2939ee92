"""Progress with rate and time left: a bar on a terminal, a plain line every so often elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable[Item], *, total: int, label: str, done: int = 0) -> Iterator[Item]:
    """Yields ``items`` and shows on stderr how far it is.

    Args:
        items: what is left to do.
        total: how many there are in all, those done before included.
        label: what is being done.
        done: how many were done before (a resumed run).
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, initial=done, desc=label, leave=False)
        return
    start = said = time.monotonic()
    for count, item in enumerate(items, done + 1):
        yield item
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and count < total:
            rate = (count - done) / (now - start)
            left = (total - count) / rate
            print(
                f"  {label}: {count}/{total}, {rate:.2f}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            said = now
