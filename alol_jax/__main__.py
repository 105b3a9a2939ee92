"""The command ``alol``: every program under one name.

alol run --config=configs/quickstart.py --workdir=runs/quickstart

``alol NAME …`` is ``python -m alol_jax.MODULE …``: the program reads its own arguments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from alol_jax.errors import UserError

BAD_INPUT = 2  # exit code


class Program(NamedTuple):
    """A program of the package."""

    module: str  # below alol_jax
    does: str  # in one line


PROGRAMS: dict[str, Program] = {
    "run": Program("main", "train a policy, from data to report"),
    "sweep": Program("sweep", "train several objectives and seeds on one reference"),
    "compare": Program("compare", "compare finished runs in one page"),
    "chat": Program("chat", "ask the reference and the policy of a run, side by side"),
    "lm-eval": Program("harness", "run tasks of lm-eval on the reference and the policy of a run"),
    "export": Program(
        "export", "write a model or the annotated rows for other tools, or push them"
    ),
    "plan": Program("plan", "check whether a config fits on a TPU, without one"),
    "doctor": Program("doctor", "check whether this machine is ready"),
    "prepare": Program("prepare", "bring the data and models that a config names"),
    "distill-reward": Program("distill_reward", "fit a small reward model to stored rewards"),
}
"""Name -> program."""


def usage() -> str:
    """Return the list of programs."""
    width = max(map(len, PROGRAMS))
    lines = [f"  {name:<{width}}  {program.does}" for name, program in PROGRAMS.items()]
    return "\n".join(["usage: alol NAME …, where NAME is one of", "", *lines, ""])


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line that ``alol`` with these arguments stands for.

    Raises:
        UserError: the first argument names no program.
    """
    name, *rest = arguments
    if name not in PROGRAMS:
        raise UserError.unknown(f"alol: no program {name!r}", name, PROGRAMS)
    return [sys.executable, "-m", f"alol_jax.{PROGRAMS[name].module}", *rest]


def entry() -> None:
    """Become the program that the command line names, or list the programs."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return
    try:
        words = command(arguments)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(BAD_INPUT)
    os.execv(words[0], words)


if __name__ == "__main__":
    entry()
