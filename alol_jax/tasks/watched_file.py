"""Opening a file of which is shown how much has been read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from alol_jax.types import Progress, Watch

BIG = 2**26  # bytes; of a smaller file nothing is shown, it is read in a moment
PIECE = 2**20  # bytes that are one step


def is_big(path: Path) -> bool:
    """Whether reading the file takes long enough to show how much has been read.

    Raises:
      OSError: it is not there.
    """
    return path.stat().st_size >= BIG


def open_watched(path: Path, progress: Progress) -> IO[bytes]:
    """Open a file for reading from its beginning to its end.

    Args:
      progress: shows the MiB that were read, of a file of `BIG` bytes or more.

    Raises:
      OSError: it cannot be opened.
    """
    if not is_big(path):
        return path.open("rb")
    total = -(-path.stat().st_size // PIECE)
    steps = progress(range(total), Watch(f"reading {path.name}, MiB"), total=total)
    return io.BufferedReader(_Watched(path.open("rb", buffering=0), steps), PIECE)


class _Watched(io.RawIOBase):
    """Takes a step whenever another piece has been read, and the last ones at the end."""

    def __init__(self, file: io.RawIOBase, steps: Iterator[int]) -> None:
        self._file, self._steps, self._read, self._taken = file, steps, 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self._file.readinto(buffer)
        self._read += count
        while self._taken < self._read // PIECE:
            next(self._steps, None)
            self._taken += 1
        if not count:
            for _ in self._steps:
                pass
        return count

    def close(self) -> None:
        self._steps = iter(())  # a bar goes with its steps
        self._file.close()
        super().close()
