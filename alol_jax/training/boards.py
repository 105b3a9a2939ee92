"""Showing metrics in TensorBoard and in Weights & Biases: the one door to both.

Both are fed from the lines of ``metrics.jsonl``. A fit that was killed and goes on shows the lines
that it kept again, from its first step, and then the new ones: so every step is there once.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Protocol

from alol_jax import paths
from alol_jax.devices import processes
from alol_jax.errors import UserError, reason
from alol_jax.paths import AnyPath
from alol_jax.types import LogOptions

Line = Mapping[str, float]
"""A line of ``metrics.jsonl``: the step, and the metrics by name."""

WANDB_ID = "wandb_id.txt"  # in the stage's folder: the run that a resumed fit goes on with


class Board(Protocol):
    """What shows the metrics of a fit."""

    def show(self, line: Line) -> None:
        """Show the metrics of a step."""

    def keep(self) -> None:
        """Put what was shown where it survives this process."""

    def close(self) -> None:
        """Keep all of it and end."""


def check_boards(options: LogOptions) -> None:
    """Check that what ``config.log`` asks for can be written, before anything runs.

    Raises:
        UserError: a package is missing, or W&B has no login.
    """
    if not processes.is_first():  # it writes alone
        return
    if options.tensorboard:
        _tensorboard()
    if options.wandb:
        wandb = _wandb()
        if _needs_login(wandb) and not wandb.login(prompt=False, verify=False):
            raise UserError(
                "config.log.wandb: W&B has no login: run `wandb login`, or set WANDB_API_KEY, or "
                "WANDB_MODE=offline, which keeps the metrics on this machine"
            )


def open_boards(folder: AnyPath, lines: Sequence[Line], options: LogOptions) -> tuple[Board, ...]:
    """Open what ``config.log`` asks for and show the lines that are there already.

    Args:
        folder: of the stage.
        lines: of its ``metrics.jsonl``.
    """
    boards: list[Board] = []
    if options.tensorboard:
        boards.append(TensorBoard(folder / "tensorboard", lines))
    if options.wandb:
        boards.append(WeightsAndBiases(folder, lines, options))
    return tuple(boards)


class TensorBoard:
    """Event files in ``folder``, written anew from the first step."""

    def __init__(self, folder: AnyPath, lines: Sequence[Line]):
        paths.remove(folder)
        self._folder = folder
        # A TensorBoard that is open hides what it has read, from step 0 on.
        self._writer = _tensorboard().SummaryWriter(str(paths.drafts_of(folder)), purge_step=0)
        for line in lines:
            self.show(line)
        self.keep()

    def show(self, line: Line) -> None:
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, line["step"])

    def keep(self) -> None:
        self._writer.flush()  # of what its thread has taken, perhaps not yet the last steps
        paths.send(self._folder)

    def close(self) -> None:
        self._writer.close()
        paths.send(self._folder)


class WeightsAndBiases:
    """A run of W&B for one fit, named after workdir and stage; a resumed fit goes on with it.

    The server knows how far the run has come and is sent what follows. Offline, the files of the
    run are written anew from its first step, for ``wandb sync``.
    """

    def __init__(self, folder: AnyPath, lines: Sequence[Line], options: LogOptions):
        self._wandb = wandb = _wandb()
        paths.remove(folder / "wandb")
        self._folder = folder / "wandb"
        workdir, stage = folder.parent.name, folder.name.partition("_")[2]
        with _refused(wandb):
            self._run = wandb.init(
                id=_run_id(folder),
                resume="allow" if _needs_login(wandb) else None,
                dir=str(paths.drafts_of(self._folder).parent),
                project=options.project or None,
                name=f"{workdir}/{stage}",
                group=workdir,
                job_type=stage,
                config=dict(options.config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        for line in lines:
            self.show(line)
        self.keep()

    def show(self, line: Line) -> None:
        step = int(line["step"])
        if step >= self._run.step:
            metrics = {name: value for name, value in line.items() if name != "step"}
            self._run.log(metrics, step=step)

    def keep(self) -> None:
        paths.send(self._folder)

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # its process writes the last lines as it ends
        paths.send(self._folder)


def _run_id(folder: AnyPath) -> str:
    """Return the id of the stage's run; a stage that is computed again gets another one."""
    file = folder / WANDB_ID
    if not paths.exists(file):
        paths.write_text(file, secrets.token_hex(4))
    return paths.read_text(file)


def _needs_login(wandb: ModuleType) -> bool:
    """Whether W&B's settings (WANDB_MODE) say to send metrics to its server."""
    return wandb.setup().settings.mode in ("online", "shared")


@contextlib.contextmanager
def _refused(wandb: ModuleType) -> Iterator[None]:
    """Turn an error of W&B into one line."""
    try:
        yield
    except wandb.Error as error:
        raise UserError(
            f"config.log.wandb: W&B says: {reason(error)}; with WANDB_MODE=offline the metrics "
            "stay on this machine"
        ) from error


def _wandb() -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            'config.log.wandb: the package wandb is not installed: pip install "wandb>=0.31,<0.32"'
        ) from error
    return wandb


def _tensorboard() -> ModuleType:
    try:
        import tensorboardX
    except ImportError as error:
        raise UserError(
            "config.log.tensorboard: the package tensorboardX is not installed: "
            "pip install tensorboardX"
        ) from error
    return tensorboardX
