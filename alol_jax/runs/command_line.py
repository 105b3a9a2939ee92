"""Parsing flags and the config file, and reporting user errors in one line."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from absl import flags, logging

from alol_jax.devices import processes
from alol_jax.devices.compile_cache import use_compile_cache
from alol_jax.devices.out_of_memory import Program, watching_memory
from alol_jax.devices.together import together
from alol_jax.errors import UserError
from alol_jax.runs.progress import say
from alol_jax.runs.terminal import on_closed_pipe, print_plainly

Options = TypeVar("Options", bound=argparse.Namespace)
BAD_INPUT = 2  # exit code
STOPPED = 143  # exit code of a run that was asked to stop
GRACE_SECONDS = 6.0  # from SIGTERM to a safe point; of the 10 s to leave, the rest is for saving

_COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", "", "Folder for compiled programs; 'off' keeps none. Default: user's cache."
)


_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "auto",
    "How the processes of a run find each other: auto (TPU pod, GKE, Slurm, Open MPI), off, or "
    "HOST:PORT,RANK,COUNT.",
)

_PACKED = "examples are packed, see config.model.width"
FORMER = {
    "model.shapes": "use config.model.max_prompt and max_response, the limits, and width",
    "reference.accumulate": "config.reference.batch_size is all items of an optimizer step",
    "policy.accumulate": "config.policy.batch_size is all items of an optimizer step",
    "ppo.accumulate": "config.ppo.batch_size is all responses of an optimizer step",
    "tensorboard": "use config.log.tensorboard",
    "select.batch_size": _PACKED,
    "evaluate.batch_size": _PACKED,
}
"""Keys of former versions, and what to use instead."""


def former(key: str) -> str:
    """Return what to use instead of a key of former versions; "" for other keys."""
    of_reward_model = key.startswith("reward_models.") and key.endswith(".batch_size")
    return _PACKED if of_reward_model else FORMER.get(key, "")


def cached(program: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Return ``program``, started with the compilation cache that ``--compile_cache`` asks for."""

    def run(arguments: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax logs every file, jax every connection
        use_compile_cache(_COMPILE_CACHE.value, say=say)
        program(arguments)

    return run


def connected(
    program: Callable[[list[str]], None], *, writing: Callable[[], str] = lambda: ""
) -> Callable[[list[str]], None]:
    """Return ``program`` for all processes of a run, which ``--distributed`` connects.

    Args:
        writing: see `guarded`.
    """

    def run(arguments: list[str]) -> None:
        processes.start(_DISTRIBUTED.value)
        with together(lambda error: one_line(error, writing())):
            program(arguments)

    return run


class Parser(argparse.ArgumentParser):
    """Parses the arguments of a program without a config; what it cannot read is a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parsed(
    parse: Callable[[Sequence[str]], Options], program: Callable[[Options], object]
) -> Callable[[list[str]], None]:
    """Return ``program`` of parsed arguments, started with the compilation cache that its option
    ``compile_cache`` asks for."""

    def run(arguments: list[str]) -> None:
        options = parse(arguments)
        use_compile_cache(options.compile_cache, say=say)
        program(options)

    return run


def started(program: Callable[[list[str]], None]) -> NoReturn:
    """Run a program on the arguments of the command line, and exit; see `guarded`."""
    arguments = sys.argv[1:]
    sys.exit(guarded(lambda: program(arguments), debug=lambda: "--debug" in arguments))


def guarded(
    run: Callable[[], None],
    *,
    debug: Callable[[], bool] = lambda: False,
    writing: Callable[[], str] = lambda: "",
) -> int:
    """Call ``run`` and return the exit code. Print user errors as one line on stderr; code 2.

    If nobody reads stdout any more (``… | head``), the program ends without a word; a program that
    uses `stop_on_signals` stops safely.

    Args:
        debug: whether to raise the error instead.
        writing: what was being written, for a file-system error that names no file.
    """
    print_plainly()
    on_closed_pipe(lambda: sys.exit(STOPPED))
    try:
        with watching_memory(Program("this program")):
            run()
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if debug():
            raise
        sys.stderr.write(f"error: {one_line(error, writing())}\n")
        return BAD_INPUT
    return 0


def stop_on_signals(grace: float = GRACE_SECONDS) -> Callable[[], bool]:
    """Handle SIGTERM and Ctrl-C: the first asks the run to stop safely, a second stops at once.

    A closed pipe at stdout or stderr asks it to stop, too.

    If the run does not ask within ``grace`` seconds of SIGTERM whether to stop, because it compiles
    or is in a long step, the process ends without saving. That loses what kill -9 loses: what was
    done since the last checkpoint.

    Returns:
        A function that tells whether the run was asked to stop. Several processes must call it at
        the same places: it is true in all of them, or in none.
    """
    if processes.count() > 1:  # JAX handles SIGTERM there
        signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return processes.StopTogether(say)
    stop, noticed = threading.Event(), threading.Event()

    def ask_to_stop(*_):
        if stop.is_set():
            sys.exit(STOPPED)
        stop.set()
        say("stopping at the next safe point; interrupt again to stop at once")

    def stopping() -> bool:
        if stop.is_set():
            noticed.set()
        return stop.is_set()

    # Python runs a handler only between two of its own instructions, so not while XLA compiles.
    # The number of a signal is written to this pair at once.
    heard, written = socket.socketpair()
    written.setblocking(False)
    threading.Thread(target=_end_late, args=(heard, written, noticed, grace), daemon=True).start()
    signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are its own
    on_closed_pipe(stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    return stopping


def _end_late(
    heard: socket.socket, written: socket.socket, noticed: threading.Event, grace: float
) -> None:
    """End the process if it does not notice a SIGTERM within ``grace`` seconds.

    Never returns, so ``written``, of which Python knows only the number, is never closed.
    """
    while True:
        if signal.SIGTERM in heard.recv(1) and not noticed.wait(grace):
            sys.stderr.write(
                f"stopped: no safe point within {grace:.0f} s, so not saved; run the same command "
                "again to resume from the last checkpoint\n"
            )
            leave(STOPPED)


def leave(code: int) -> NoReturn:
    """End the process at once, without the seconds that Python and JAX take to tidy up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parse(argv: list[str]) -> list[str]:
    """Parse the command line. An unknown flag or config field raises UserError."""
    for file in re.findall(r"^--?config[= ]([^:\n]*)", "\n".join(_joined(argv)), re.MULTILINE):
        if not Path(file).is_file():
            raise UserError(f"--config: there is no file {file!r}: give one of {_configs()}")
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # what ml_collections raises for an unknown key
        key, *hint = re.findall(r"\w+", str(error.args[0]).replace("\\n", " "))
        word = next((word for word in argv if key in word.split("=")[0]), "--config")
        instead = former(word.split("=")[0].removeprefix("--config."))
        near = f": did you mean {hint[3]!r}?" if hint[:2] == ["Did", "you"] else ""
        near = f" any more; {instead}" if instead else near
        raise UserError(f"{word}: the config has no key {key!r}{near}") from error
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error).strip().splitlines()[-1]) from error


def _configs() -> str:
    """Return the folder of the configs: the one here, else the one that was installed."""
    here, spec = Path("configs"), importlib.util.find_spec("configs")
    return f"{here if here.is_dir() or spec is None else Path(spec.origin).parent}/"


def one_line(error: Exception, writing: str = "") -> str:
    """Format the error as one line. A file-system error becomes the file and the reason."""
    if isinstance(error, OSError) and (error.filename or writing):
        return f"{error.filename or writing}: {error.strerror or error}"
    return " ".join(str(error).split())


def _joined(argv: list[str]) -> list[str]:
    """Return the arguments with ``--config FILE`` joined to ``--config=FILE``."""
    return "\n".join(argv).replace("--config\n", "--config=").split("\n")
