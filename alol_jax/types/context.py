"""What a running stage may use besides its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from alol_jax.paths import AnyPath

Item = TypeVar("Item")


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


class Progress(Protocol):
    """Shows how far a loop is: `runs.progress.progress`, for rooms that may not import it."""

    def __call__(self, items: Iterable[Item], watch: Watch, *, total: int) -> Iterator[Item]:
        """Yield ``items``, of which there are ``total``."""


def unseen(items: Iterable[Item], watch: Watch, *, total: int) -> Iterator[Item]:
    """Yield ``items`` and show nothing."""
    return iter(items)


class LogOptions(NamedTuple):
    """Where the metrics of a fit are shown besides its ``metrics.jsonl``: ``config.log``."""

    tensorboard: bool = False
    wandb: bool = False
    project: str = ""  # of W&B; "" = its own choice, WANDB_PROJECT
    config: Mapping[str, Any] = MappingProxyType({})  # the run's, to be shown with its metrics


class Pace(NamedTuple):
    """How fast a fit goes."""

    seconds: float  # of a step, compilation apart
    tokens: float  # real ones of a step
    left: int  # steps to its end


def untold(pace: Pace) -> None:
    """Tell the pace to nobody."""


class StageContext(NamedTuple):
    """What a running stage may use besides its inputs."""

    folder: AnyPath  # the stage's own folder, kept when the run is interrupted
    stopping: Callable[[], bool]  # True once the run was asked to stop
    say: Callable[[str], None]  # prints one line for the user
    log: LogOptions = LogOptions()
    pace: Callable[[Pace], None] = untold  # is told once how fast a fit goes

    def watch(self, label: str) -> Watch:
        """Return a `Watch` for a loop of this stage."""
        return Watch(label, self.say, self.stopping)
