"""The exceptions that end a program, and words for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """An error that the user can fix. One line that says what is wrong and how to fix it.

    Programs print it and exit with code 2.
    """

    @classmethod
    def unknown(cls, message: str, name: str, known: Iterable[str]) -> UserError:
        """Return ``message`` with the closest known name, or with all of them if none is close."""
        known = tuple(known)
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        return cls(f"{message}: {hint}")


class Finished(Exception):
    """Every stage that ``--stages`` allows is done."""


class Interrupted(Exception):
    """The run stopped on SIGTERM or Ctrl-C, after saving what it needs to resume."""


def format_names(names: Sequence[str]) -> str:
    """Join the first eight names and say how many more there are."""
    shown = ", ".join(names[:8]) or "none"
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def reason(error: BaseException) -> str:
    """Return the first line of the error's message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__
