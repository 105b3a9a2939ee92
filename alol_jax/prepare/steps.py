"""What the program does with what a config names: list it, bring it, say how the run starts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from alol_jax.errors import UserError
from alol_jax.prepare.bring import Surroundings
from alol_jax.prepare.wanted import Item
from alol_jax.runs.command_line import one_line

OWN_FLAGS = ("list", "nolist", "debug", "nodebug", "workdir", "compile_cache")  # not the run's


def list_items(items: Sequence[Item], around: Surroundings, *, details: bool) -> list[Item]:
    """Say of each item whether it is there. Return those that are not.

    Args:
        details: whether to say size, source and licence also of what is there.
    """
    missing = []
    for item in items:
        there = item.there()
        if not there:
            missing.append(item)
        about = f" ({item.about()})" if details or not there else ""
        around.say(f"{'there' if there else 'missing'}: {item.title}{about}")
    return missing


def bring_items(items: Sequence[Item], around: Surroundings) -> list[str]:
    """Bring what can be brought. Return a line for each item that could not.

    Raises:
        Interrupted: the program was asked to stop.
    """
    failures = []
    for item in items:
        try:
            item.bring(around)
            around.say(f"brought: {item.title}")
        except (UserError, OSError) as error:
            failures.append(one_line(error))
    return failures


def run_command(words: Sequence[str], workdir: str) -> str:
    """Return the command that starts the run.

    Args:
        words: the arguments of this program.
        workdir: the workdir of the run; "" = named by config and argument, runs/hha-dpo for
            configs/hha.py:objective=dpo.
    """
    kept, words = [], list(words)
    while words:
        word = words.pop(0)
        flag, has_value, _ = word.lstrip("-").partition("=")
        if not word.startswith("-") or flag not in OWN_FLAGS:
            kept.append(word)
        elif flag in ("workdir", "compile_cache") and not has_value:
            del words[:1]
    workdir = workdir or _default_workdir(kept)
    return shlex.join(["python", "-m", "alol_jax.main", *kept, f"--workdir={workdir}"])


def _default_workdir(words: Sequence[str]) -> str:
    joined = "\n".join(words).replace("config\n", "config=").split("\n")
    given = next(word for word in joined if word.lstrip("-").startswith("config="))
    file, _, argument = given.partition("=")[2].partition(":")
    values = [part.rpartition("=")[2] for part in argument.split(",") if part]
    return f"runs/{'-'.join([Path(file).stem, *values])}"
