"""Several objectives × seeds on one reference: what they share is computed once.

    python -m alol_jax.sweep --config=configs/quickstart.py --workdir=runs/sweep \
        --objectives=nll,a_lol,dpo --seeds=0,1,2

Everything up to `select` lies in ``<workdir>/shared``; each run has a workdir of its own beside it,
``<objective>-<seed>``, as complete as any other (with links to what is shared; `main` on it needs
the same ``--config.policy.seed`` and ``--config.select.columns``). A seed is
``config.policy.seed``: it changes row order, dropout and rollouts, not the reference. At the end
all runs are compared (`compare`), with those of earlier sweeps in the same workdir. Run the same
command again to go on. Objectives that read what no objective of the first sweep reads (advantage,
log-probabilities of the reference) cannot be added later: name them all at once.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from alol_jax.checks import COLUMNS, check
from alol_jax.compare import check_out, compare
from alol_jax.main import CONFIG, REDO, STAGES, WORKDIR, Opened, entry, prepare, recipe
from alol_jax.objectives.registry import get_objective
from alol_jax.reports.finished_runs import why_not
from alol_jax.runs.command_line import stop_on_signals
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import Run, finished_stage, first_difference, lock_workdir
from alol_jax.tasks.registry import get_task
from alol_jax.types import UserError

COMMON = (
    *("seed", "task", "rewards", "reward_models", "score", "model", "mesh", "reference"),
    *("decode", "generate", "value", "select", "evaluate"),
)
"""Keys of the config that the runs of a sweep have in common: what is computed or opened once."""
POLICY = STAGES["fit_policy"]  # the first stage that no two runs share
SET_HERE = {
    "objective.name": "use --objectives",
    "policy.seed": "use --seeds",
    "select.columns": "it follows from --objectives",
}
"""Fields that a sweep sets in each run."""

_OBJECTIVES = flags.DEFINE_list("objectives", ["a_lol"], "Names of objectives.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Whole numbers, 0 or more.")
_AGAINST = flags.DEFINE_string("against", None, "The row that all others are compared with.")


def asked(objectives: Sequence[str], seeds: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """The objectives and seeds of the command line.

    Raises:
        UserError: none or one of them twice, no objective of this name, no whole number.
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


def columns_of(objectives: Sequence[str], shared: Path) -> tuple[str, ...]:
    """What `select` annotates so that all these objectives can read it.

    What was annotated before stays, so that a sweep can be continued with objectives that read no
    more than that; others need --redo, or a workdir of their own.
    """
    wanted = {column for name in objectives for column in get_objective(name).reads}
    if (made := finished_stage(shared, "select")) is not None:
        before = set(made.config().select.columns)
        new = wanted - before - {"reward"}  # which every row has
        wanted = before | wanted if new else before
    return tuple(column for column in COLUMNS if column in wanted)


def sweep(
    config_of: Callable[[str], ConfigDict],
    workdir: Path,
    objectives: Sequence[str],
    seeds: Sequence[int],
    *,
    redo: bool,
    stopping: Callable[[], bool],
) -> tuple[Path, ...]:
    """Runs every objective with every seed; returns their workdirs.

    Args:
        config_of: objective -> the config of its runs.

    Raises:
        UserError: as a run; or configs of two objectives that differ in what is shared.
        Interrupted: the sweep was asked to stop.
    """
    configs = {name: config_of(name) for name in objectives}
    shared, folders = workdir / "shared", []
    with lock_workdir(workdir):
        columns = columns_of(objectives, shared)
        for config in configs.values():
            config.select.columns = columns
        opened = _prepared(configs)
        for seed in seeds:
            for name, config in configs.items():
                began = time.monotonic()
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
                    shared_stages=[stage for stage, number in STAGES.items() if number < POLICY],
                )
                with lock_workdir(run.folder):
                    recipe(config, run, opened)
                say(f"--- {name}, seed {seed}: {time.monotonic() - began:.0f} s")
    return tuple(folders)


def _prepared(configs: Mapping[str, ConfigDict]) -> Opened:
    """The models of all runs, once it is known that every config can run to its end.

    Raises:
        UserError: one cannot; or two of them do not share what a sweep computes once.
    """
    (first, config), *others = configs.items()
    for name, other in others:
        parts = [{f"config.{key}": c.to_dict()[key] for key in COMMON} for c in (config, other)]
        found = first_difference(*parts)
        if found is not None:
            raise UserError(
                f"{first} and {name} cannot share a reference: {found.field} = {found.one} for "
                f"the one and {found.other} for the other; sweep them apart"
            )
    opened = prepare(config)
    for name, other in others:
        check(other, get_task(other.task), get_objective(name), opened.lm)
    return opened


def config_from(file: str, overrides: Mapping[str, Any]) -> Callable[[str], ConfigDict]:
    """objective -> the config in ``file`` (with its argument) for it, with what flags changed.

    Raises:
        UserError: a flag changes what a sweep sets itself (`SET_HERE`); or, of what is returned,
            the config does not know the objective.
    """
    path, _, arg = file.partition(":")
    for field, instead in SET_HERE.items():
        if field in overrides:
            raise UserError(f"--config.{field}: a sweep sets it in each run: {instead}")

    def config_of(objective: str) -> ConfigDict:
        said = ",".join(filter(None, (arg, f"objective={objective}")))
        try:
            config = runpy.run_path(path)["get_config"](said)
        except (TypeError, ValueError) as error:
            raise UserError(f"--config={file}: get_config({said!r}) says: {error}") from error
        config.update_from_flattened_dict(overrides)
        if config.objective.name != objective:
            raise UserError(
                f"--config={file}: its get_config({said!r}) is for {config.objective.name}: a "
                "config of a sweep takes the objective as its argument, as those of configs/ do"
            )
        return config

    return config_of


def earlier(workdir: Path) -> tuple[Path, ...]:
    """The finished runs that are in the workdir of a sweep already."""
    found = sorted(workdir.glob("*-*"))
    return tuple(folder for folder in found if finished_stage(folder, "evaluate") is not None)


def comparable(folders: Sequence[Path], others: Sequence[Path]) -> tuple[Path, ...]:
    """``folders``, and those of the others that can be compared with them; says what cannot."""
    found = list(folders)
    for other in others:
        if other in folders:
            continue
        if reason := why_not(folders[0], other):
            say(f"not in the comparison: {reason}")
        else:
            found.append(other)
    return tuple(found)


def check_against(
    against: str | None,
    objectives: Sequence[str],
    seeds: Sequence[int],
    others: Sequence[Path] = (),
) -> None:
    """Raises UserError where no row of the comparison will have this name."""
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
        raise UserError("--stages: a sweep runs them all; alol_jax.main runs some of one run")
    objectives, seeds = asked(_OBJECTIVES.value, _SEEDS.value)
    workdir = Path(WORKDIR.value)
    before = earlier(workdir)
    check_against(_AGAINST.value, objectives, seeds, before)
    check_out(workdir / "compare")
    logging.set_verbosity(logging.WARNING)  # orbax tells about every file
    holder = flags.FLAGS["config"]
    file, changed = config_flags.get_config_filename(holder), holder.override_values
    folders = sweep(
        config_from(file, changed),
        workdir,
        objectives,
        seeds,
        redo=REDO.value,
        stopping=stop_on_signals(),
    )
    runs = comparable(folders, before)
    compare(runs, workdir / "compare", against=_AGAINST.value, say=say)


if __name__ == "__main__":
    entry(main)
