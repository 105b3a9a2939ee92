"""Check whether a config fits on a TPU, and estimate what a step costs, without a TPU.

python -m alol_jax.plan --config=configs/quickstart.py --topology=v5e:2x4

Compiles the programs of a config for a TPU, on any machine with ``requirements-plan.txt``. Nothing
is executed and no weights are read. With ``--data``, the training rows are read and tokenised: the
policy step then has the grid that a run on them chooses, and its real tokens are counted.
"""

from __future__ import annotations

import dataclasses
import sys

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from alol_jax.errors import UserError
from alol_jax.plan.chips import in_gib, read_topology
from alol_jax.plan.data import read_lengths
from alol_jax.plan.knobs import advice
from alol_jax.plan.programs import NAMES
from alol_jax.plan.setting import Setting, prepare
from alol_jax.plan.summary import as_json, chip_hours_line, epoch_line, table, verdict
from alol_jax.runs.command_line import cached, guarded, parse
from alol_jax.runs.progress import say

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with :argument.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape, like v5e:2x4 or v5p:2x2x1.")
_SLICES = flags.DEFINE_integer("slices", 1, "So many of the topology, side by side.", lower_bound=1)
_CHIPS = flags.DEFINE_integer("chips", 0, "Use only the first chips of the topology; 0 = all.")
_PROGRAMS = flags.DEFINE_list("programs", list(NAMES), "The programs to compile.")
_DATA = flags.DEFINE_bool("data", False, "Read the training rows, and count real tokens.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}: settings go as --config.x.y=value")
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise UserError("--config and --topology are needed, like --topology=v5e:2x4")
    for name in _PROGRAMS.value:
        if name not in NAMES:
            raise UserError.unknown(f"--programs: {name!r} is not a program", name, NAMES)
    topology = read_topology(_TOPOLOGY.value)
    prepare()
    slices, config = _SLICES.value, ConfigDict(_CONFIG.value.to_dict())
    chips = _CHIPS.value or topology.chips * slices
    setting = Setting(config, topology, chips, slices=slices)
    log = (lambda line: None) if _JSON.value else say
    lm = setting.open()
    for note in lm.notes:
        log(note)
    if _DATA.value:
        lengths = read_lengths(lm, setting.config, setting.objective)
        setting = dataclasses.replace(setting, lengths=lengths)
    costs = []
    for cost in setting.costs(_PROGRAMS.value):
        reads = f"a grid of {cost.rows} × {cost.width} tokens, " if cost.rows else ""
        seconds = f"compiled in {cost.compile_seconds:.0f} s"
        log(f"  {cost.name}: {reads}{in_gib(cost.peak)}, {seconds}")
        costs.append(cost)
    if not costs:
        raise UserError(f"--programs: {_CONFIG.value.objective.name} needs none of them")
    knob = "" if all(cost.fits for cost in costs) else advice(setting, costs, log)
    if _JSON.value:
        say(as_json(setting, costs, knob))
    else:
        say(table(costs))
        say(chip_hours_line(setting, costs))
        if setting.epoch is not None:
            say(epoch_line(setting.epoch, costs))
        say(verdict(setting, costs, knob))


def entry() -> None:
    """Run `main`; a `UserError` is printed as one line on stderr, with exit code 2."""
    sys.exit(guarded(lambda: app.run(cached(main), flags_parser=parse)))


if __name__ == "__main__":
    entry()
