"""What a running stage may use besides its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from alol_jax.paths import AnyPath


def never() -> bool:
    """Never ask to stop."""
    return False


def silent(line: str) -> None:
    """Discard the line."""


class Watch(NamedTuple):
    """How a long loop reports its progress, and when it should stop."""

    label: str  # what the loop does
    say: Callable[[str], None] = silent  # prints one line for the user
    stopping: Callable[[], bool] = never  # True once the loop should stop


class StageContext(NamedTuple):
    """What a running stage may use besides its inputs."""

    folder: AnyPath  # the stage's own folder, kept when the run is interrupted
    stopping: Callable[[], bool]  # True once the run was asked to stop
    say: Callable[[str], None]  # prints one line for the user
    tensorboard: bool

    def watch(self, label: str) -> Watch:
        """Return a `Watch` for a loop of this stage."""
        return Watch(label, self.say, self.stopping)
