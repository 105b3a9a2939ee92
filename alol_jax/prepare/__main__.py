"""Bring what a config names, so that its run starts: data, models, adapters, reward models.

python -m alol_jax.prepare --config=configs/hha.py

Lists what the config names, downloads and unpacks what is not here, and ends with the command that
starts the run. Run again, it continues, or does nothing. ``--list`` lists only. It exits with code
2 if something could not be brought, after everything else was.
"""

from __future__ import annotations

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from alol_jax.errors import Interrupted, UserError
from alol_jax.prepare.bring import Surroundings
from alol_jax.prepare.places import read_places
from alol_jax.prepare.steps import bring_items, list_items, run_command
from alol_jax.prepare.wanted import wanted
from alol_jax.runs.command_line import BAD_INPUT, STOPPED, guarded, parse, stop_on_signals
from alol_jax.runs.progress import say

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with :argument.")
_WORKDIR = flags.DEFINE_string("workdir", "", "The workdir of the command that is printed.")
_LIST = flags.DEFINE_bool("list", False, "List what the config names, and bring nothing.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}: settings go as --config.x.y=value")
    if _CONFIG.value is None:
        raise UserError("--config is needed, like --config=configs/hha.py")
    logging.set_verbosity(logging.WARNING)
    around = Surroundings(say, stop_on_signals())
    items = wanted(_CONFIG.value, read_places(os.environ.get("ALOL_PLACES", "")))
    missing = list_items(items, around, details=_LIST.value)
    if _LIST.value:
        return
    failures = bring_items(missing, around)
    command = run_command(sys.argv[1:], _WORKDIR.value)
    if not failures:
        say(f"everything is here; the run:\n{command}")
        return
    say(f"{len(failures)} of {len(items)} are missing; with these, the run:\n{command}")
    for failure in failures:
        sys.stderr.write(f"error: {failure}\n")
    sys.exit(BAD_INPUT)


def entry() -> None:
    """Run `main`; a `UserError` is printed as one line on stderr, with exit code 2."""

    def run() -> None:
        try:
            app.run(main, flags_parser=parse)
        except Interrupted as stopped:
            sys.stderr.write(f"stopped: {stopped}; run the same command again to continue\n")
            sys.exit(STOPPED)

    sys.exit(guarded(run, debug=lambda: _DEBUG.present and _DEBUG.value))


if __name__ == "__main__":
    entry()
