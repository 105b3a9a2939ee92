"""Train several objectives × seeds on one reference, computing shared stages once.

    python -m alol_jax.sweep --config=configs/quickstart.py --workdir=runs/sweep \
        --objectives=nll,a_lol,dpo --seeds=0,1,2

The stages up to `select`, and `evaluate_reference`, are in ``<workdir>/shared``. Each run has its
own workdir ``<workdir>/<objective>-<seed>``, which is complete: ``link.json`` in the folder of a
shared stage says where its result is (to run `main` on it, pass the same ``--config.policy.seed``
and ``--config.select.columns``). A seed is ``config.policy.seed``: it changes row order, dropout
and rollouts, not the reference. At the end all runs are compared (`compare`), including those of
earlier sweeps in the same workdir. Run the same command again to resume. Objectives that read a
column (advantage, log-probabilities of the reference) that the first sweep did not compute cannot
be added later: name all objectives at once.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from alol_jax import paths
from alol_jax.checks import COLUMNS, check
from alol_jax.compare import check_out, compare
from alol_jax.devices import processes
from alol_jax.errors import UserError
from alol_jax.main import CONFIG, REDO, STAGES, WORKDIR, Opened, entry, prepare, recipe, writing
from alol_jax.objectives.registry import columns_read, get_objective
from alol_jax.paths import AnyPath
from alol_jax.reports.finished_runs import why_not_comparable
from alol_jax.runs.command_line import connected, stop_on_signals
from alol_jax.runs.lock import lock_workdir
from alol_jax.runs.progress import say
from alol_jax.runs.records import first_difference
from alol_jax.runs.workdir import Run, finished_stage
from alol_jax.tasks.registry import get_task

SHARED_KEYS = (
    *("seed", "task", "rewards", "reward_models", "score", "model", "mesh", "reference"),
    *("decode", "generate", "value", "select", "evaluate"),
)
"""Config keys that are the same in all runs of a sweep, because what they control is shared."""
UNTIL_SELECT = tuple(name for name, number in STAGES.items() if number < STAGES["fit_policy"])
SHARED_STAGES = (*UNTIL_SELECT, "evaluate_reference")
SET_BY_SWEEP = {
    "objective.name": "use --objectives",
    "policy.seed": "use --seeds",
    "select.columns": "it follows from --objectives",
}
"""Config keys that a sweep sets in each run -> what to use instead."""

OBJECTIVES = flags.DEFINE_list("objectives", ["a_lol"], "Names of objectives.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Whole numbers, 0 or more.")
_AGAINST = flags.DEFINE_string("against", None, "The row that all others are compared with.")


def parse_lists(
    objectives: Sequence[str], seeds: Sequence[str]
) -> tuple[tuple[str, ...], list[int]]:
    """Check the objectives and seeds of the command line.

    Raises:
        UserError: a list is empty or has duplicates, an objective is unknown, or a seed is not a
            whole number.
    """
    for name in objectives:
        get_objective(name)
    if not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"--seeds={','.join(seeds)}: expected whole numbers, 0 or more")
    numbers = [int(seed) for seed in seeds]
    for flag, values in (("objectives", objectives), ("seeds", numbers)):
        if not values:
            raise UserError(f"--{flag} is empty: name at least one")
        if len(set(values)) < len(values):
            raise UserError(f"--{flag}={','.join(map(str, values))}: one is given twice")
    return tuple(objectives), numbers


def columns_of(configs: Iterable[ConfigDict], shared: AnyPath) -> tuple[str, ...]:
    """The columns that `select` computes for runs with these configs.

    The columns of a finished `select` are kept if they suffice, so that a sweep can be extended.
    Objectives that need more columns need --redo, or another workdir.
    """
    wanted = set()
    for config in configs:
        wanted |= columns_read(get_objective(config.objective.name), config.policy.filter)
    if (finished := finished_stage(shared, "select")) is not None:
        before = set(finished.config().select.columns)
        new = wanted - before - {"reward"}  # every row has a reward
        wanted = before | wanted if new else before
    return tuple(column for column in COLUMNS if column in wanted)


def sweep(
    configs: Mapping[str, ConfigDict],
    workdir: AnyPath,
    seeds: Sequence[int],
    *,
    redo: bool,
    stopping: Callable[[], bool],
) -> tuple[AnyPath, ...]:
    """Run every config with every seed; return their workdirs, ``<workdir>/<name>-<seed>``.

    Args:
        configs: name -> the config of its runs. In the program the names are objectives.

    Raises:
        UserError: as in `main`; or two configs differ in a shared key.
        Interrupted: the sweep was asked to stop.
    """
    shared, folders = workdir / "shared", []
    with lock_workdir(workdir):
        columns = columns_of(configs.values(), shared)
        for config in configs.values():
            config.select.columns = columns
        opened, same_rows = _prepare_all(configs), tuple(configs.values())
        for seed in seeds:
            for name, config in configs.items():
                started = time.monotonic()
                config.policy.seed = seed
                folders.append(workdir / f"{name}-{seed}")
                say(f"--- {name}, seed {seed}")
                run = Run(
                    folders[-1],
                    STAGES,
                    config,
                    allowed=tuple(STAGES),
                    redo=redo,
                    stopping=stopping,
                    say=say,
                    shared=shared,
                    shared_stages=SHARED_STAGES,
                )
                with lock_workdir(run.folder):
                    recipe(config, run, opened, same_rows)
                # All are checked, and the notes said, in the first run.
                opened, same_rows = opened._replace(notes=()), ()
                say(f"--- {name}, seed {seed}: {time.monotonic() - started:.0f} s")
    return tuple(folders)


def _prepare_all(configs: Mapping[str, ConfigDict]) -> Opened:
    """Check all configs and open the models that their runs share.

    Raises:
        UserError: a config cannot run to its end, or two configs differ in a shared key.
    """
    (first, config), *others = configs.items()
    for name, other in others:
        parts = [
            {f"config.{key}": c.to_dict()[key] for key in SHARED_KEYS} for c in (config, other)
        ]
        found = first_difference(*parts)
        if found is not None:
            raise UserError(
                f"{first} and {name} cannot share a reference: {found.field} = {found.one} for "
                f"{first} and {found.other} for {name}: run separate sweeps"
            )
    opened = prepare(config)
    for _, other in others:
        check(other, get_task(other.task), get_objective(other.objective.name), opened.lm)
    return opened


def config_from(file: str, overrides: Mapping[str, Any]) -> Callable[[str], ConfigDict]:
    """Return a function from an objective to its config: ``file`` with the flags' overrides.

    Args:
        file: path of the config, with ``:argument`` if it has one.
        overrides: config key -> value from the command line.

    Raises:
        UserError: a flag sets a key of `SET_BY_SWEEP`. The returned function raises it if the
            config does not accept the objective.
    """
    path, _, arg = file.partition(":")
    for field, instead in SET_BY_SWEEP.items():
        if field in overrides:
            raise UserError(f"--config.{field}: a sweep sets it in each run: {instead}")

    def config_of(objective: str) -> ConfigDict:
        argument = ",".join(filter(None, (arg, f"objective={objective}")))
        try:
            config = runpy.run_path(path)["get_config"](argument)
        except (TypeError, ValueError) as error:
            raise UserError(f"--config={file}: get_config({argument!r}) says: {error}") from error
        config.update_from_flattened_dict(overrides)
        if config.objective.name != objective:
            raise UserError(
                f"--config={file}: its get_config({argument!r}) is for {config.objective.name}: a "
                "config of a sweep must take objective=NAME as its argument, as those in configs/ "
                "do"
            )
        return config

    return config_of


def earlier_runs(workdir: AnyPath) -> tuple[AnyPath, ...]:
    """The finished runs that are already in the workdir of a sweep."""
    found = [workdir / name for name in paths.names(workdir) if "-" in name]
    return tuple(folder for folder in found if finished_stage(folder, "evaluate") is not None)


def comparable_runs(folders: Sequence[AnyPath], others: Sequence[AnyPath]) -> tuple[AnyPath, ...]:
    """``folders`` and the others that can be compared with them; prints why the rest cannot."""
    found = list(folders)
    for other in others:
        if other in folders:
            continue
        if reason := why_not_comparable(folders[0], other):
            say(f"not in the comparison: {reason}")
        else:
            found.append(other)
    return tuple(found)


def check_against(
    against: str | None,
    objectives: Sequence[str],
    seeds: Sequence[int],
    others: Sequence[AnyPath] = (),
) -> None:
    """Raise UserError if no row of the comparison will have the name ``against``."""
    runs = [f"{name}-{seed}" for name in objectives for seed in seeds]
    runs += [folder.name for folder in others]
    rows = ("reference", "data", *dict.fromkeys(run.rpartition("-")[0] for run in runs), *runs)
    if against is not None and against not in rows:
        raise UserError.unknown(f"--against: no row {against!r}", against, rows)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}: settings go as --config.x.y=value")
    if CONFIG.value is None or not WORKDIR.value:
        raise UserError("--config and --workdir are needed: see README.md for a command to copy")
    if flags.FLAGS["stages"].present:
        raise UserError("--stages: a sweep runs all stages; use alol_jax.main to run only some")
    objectives, seeds = parse_lists(OBJECTIVES.value, SEEDS.value)
    workdir = paths.workdir_of(WORKDIR.value)
    before = earlier_runs(workdir)
    check_against(_AGAINST.value, objectives, seeds, before)
    check_out(workdir / "compare")
    flag = flags.FLAGS["config"]
    file, overrides = config_flags.get_config_filename(flag), flag.override_values
    config_of = config_from(file, overrides)
    folders = sweep(
        {name: config_of(name) for name in objectives},
        workdir,
        seeds,
        redo=REDO.value,
        stopping=stop_on_signals(),
    )
    if processes.is_first():
        runs = comparable_runs(folders, before)
        compare(runs, workdir / "compare", against=_AGAINST.value, say=say)


if __name__ == "__main__":
    entry(connected(main, writing=writing))
