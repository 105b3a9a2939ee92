"""Progress with rate and time left: a bar on a terminal, elsewhere nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from alol_jax.devices import processes
from alol_jax.errors import Interrupted
from alol_jax.types import Watch

Item = TypeVar("Item")


def progress(items: Iterable[Item], watch: Watch, *, total: int, done: int = 0) -> Iterator[Item]:
    """Yield ``items`` and show the progress on stderr, if that is a terminal.

    Args:
        items: the items left to do.
        watch: its ``stopping`` is called after every item.
        total: the number of all items, including those already done.
        done: how many items are already done, in a resumed run.

    Raises:
        Interrupted: ``watch.stopping()`` was true before the last item was done.
    """
    shown = items
    if on_terminal():
        shown = tqdm(items, total=total, initial=done, desc=watch.label, leave=False)
    for count, item in enumerate(shown, done + 1):
        yield item
        if watch.stopping() and count < total:
            raise Interrupted(f"{watch.label}: {count} of {total} done, to be repeated")


def on_terminal() -> bool:
    """Whether stderr is a terminal that can draw a bar over the one before."""
    drawn = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return drawn and processes.is_first()


def say(line: str) -> None:
    """Print one line on stdout, above the progress bar if there is one; only in process 0."""
    if not processes.is_first():
        return
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
