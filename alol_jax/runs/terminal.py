"""Where lines are printed: a terminal that lacks characters, and a pipe that nobody reads."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from collections.abc import Callable
from typing import TextIO

PLAIN = {
    **{"×": "x", "·": "*", "−": "-", "–": "-", "─": "-", "…": "...", "→": "->"},
    **{"±": "+-", "≥": ">=", "≤": "<=", "≈": "~", "√": "sqrt", "π": "pi", "Σ": "sum"},
}
"""What stands for a character that the terminal's encoding lacks; for others, "?"."""


def print_plainly() -> None:
    """Let stdout and stderr print other characters in the place of those that they lack."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_plain_character, text)), error.end


def _plain_character(character: str) -> str:
    """Return ASCII: the table's, or the letter without its accent."""
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return PLAIN.get(character, bare or "?")


def on_closed_pipe(call: Callable[[], None]) -> None:
    """Call ``call`` once nobody reads stdout or stderr any more, and drop what is written then."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, Output(stream.inner if isinstance(stream, Output) else stream, call))


class Output(io.TextIOBase):
    """Writes to the stream ``inner``, and calls ``closed_pipe`` instead of BrokenPipeError."""

    def __init__(self, inner: TextIO, closed_pipe: Callable[[], None]):
        self.inner, self._closed_pipe = inner, closed_pipe

    def write(self, text: str) -> int:
        self._attempt(lambda: self.inner.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.inner.flush)

    def isatty(self) -> bool:
        return self.inner.isatty()

    def fileno(self) -> int:
        return self.inner.fileno()

    @property
    def encoding(self) -> str:
        return self.inner.encoding

    def _attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.inner.fileno())  # its buffer, too, can be flushed from now on
            os.close(nowhere)
            self._closed_pipe()
