"""Several objectives × seeds on one reference: what they share is computed once.

    python -m alol_jax.sweep --config=configs/quickstart.py --workdir=runs/sweep \
        --objectives=nll,a_lol,dpo --seeds=0,1,2

Everything up to `select` lies in ``<workdir>/shared``; each run has a workdir of its own beside it,
``<objective>-<seed>``, as complete as any other (with links to what is shared). A seed is
``config.policy.seed``: it changes row order, dropout and rollouts, not the reference. At the end
all runs are compared (`compare`). Run the same command again to go on.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from alol_jax.checks import COLUMNS
from alol_jax.command_line import stop_when_asked
from alol_jax.compare import compare
from alol_jax.main import CONFIG, REDO, STAGES, WORKDIR, entry, prepare, recipe
from alol_jax.objectives import get_objective
from alol_jax.progress import say
from alol_jax.types import UserError
from alol_jax.workdir import Run, alone_in, finished_stage

_OBJECTIVES = flags.DEFINE_list("objectives", ["a_lol"], "Names of objectives.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Whole numbers, 0 or more.")
_AGAINST = flags.DEFINE_string("against", None, "The row that all others are compared with.")


def columns_of(objectives: Sequence[str], shared: Path) -> tuple[str, ...]:
    """What `select` annotates so that all these objectives can read it.

    What was annotated before stays, so that a sweep can be continued with other objectives.
    """
    wanted = {column for name in objectives for column in get_objective(name).reads}
    if (made := finished_stage(shared, "select")) is not None:
        before = set(made.config().select.columns)
        wanted = before if wanted <= before else wanted
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
    shared, lm, folders = workdir / "shared", None, []
    columns = columns_of(objectives, shared)
    with alone_in(workdir):
        for seed in seeds:
            for name in objectives:
                config = config_of(name)
                with config.unlocked():
                    config.policy.seed, config.select.columns = seed, columns
                began = time.monotonic()
                lm = prepare(config) if lm is None else lm
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
                )
                recipe(config, run, lm)
                say(f"--- {name}, seed {seed}: {time.monotonic() - began:.0f} s")
    return tuple(folders)


def config_from(file: str, overrides: dict) -> Callable[[str], ConfigDict]:
    """objective -> the config in ``file`` (with its argument) for it, with what flags changed."""
    path, _, arg = file.partition(":")

    def config_of(objective: str) -> ConfigDict:
        said = ",".join(filter(None, (arg, f"objective={objective}")))
        config = runpy.run_path(path)["get_config"](said)
        config.update_from_flattened_dict(overrides)
        return config

    return config_of


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}: settings go as --config.x.y=value")
    if CONFIG.value is None or not WORKDIR.value:
        raise UserError("--config and --workdir are needed: see README.md for a command to copy")
    for name in _OBJECTIVES.value:
        get_objective(name)
    if not all(seed.isdecimal() for seed in _SEEDS.value):
        raise UserError(f"--seeds={','.join(_SEEDS.value)}: expected whole numbers, 0 or more")
    logging.set_verbosity(logging.WARNING)  # orbax tells about every file
    holder = flags.FLAGS["config"]
    file, changed = config_flags.get_config_filename(holder), holder.override_values
    folders = sweep(
        config_from(file, changed),
        Path(WORKDIR.value),
        _OBJECTIVES.value,
        [int(seed) for seed in _SEEDS.value],
        redo=REDO.value,
        stopping=stop_when_asked(),
    )
    compare(folders, Path(WORKDIR.value) / "compare", against=_AGAINST.value, say=say)


if __name__ == "__main__":
    entry(main)
