"""A line of the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from alol_jax.errors import UserError, reason


class Finding(NamedTuple):
    """What a check says of its subject."""

    ready: bool
    subject: str
    said: str

    def __str__(self) -> str:
        return f"{'ok' if self.ready else 'error':<7}{self.subject}: {self.said}"


def find(subject: str, check: Callable[[], str]) -> Finding:
    """Return what ``check`` says, or its error."""
    try:
        return Finding(True, subject, check())
    except (UserError, OSError, RuntimeError) as error:  # the last: JAX's
        return Finding(False, subject, reason(error))
