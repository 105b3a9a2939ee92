"""What the experiments share: variants of a config, and stages shared between workdirs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from alol_jax.errors import Finished, UserError
from alol_jax.main import REDO, STAGES, WORKDIR, prepare, recipe
from alol_jax.runs.command_line import stop_on_signals
from alol_jax.runs.lock import lock_workdir
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import Run
from alol_jax.sweep import (
    OBJECTIVES,
    SEEDS,
    UNTIL_SELECT,
    columns_of,
    config_from,
    parse_lists,
    sweep,
)

UNTIL_REFERENCE = ("load", "score", "fit_reference")
Variants = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name -> objective, and what is changed in its config."""


class Asked(NamedTuple):
    """The command line of an experiment."""

    file: str  # the config
    overrides: Mapping[str, Any]  # config key -> value
    workdir: Path
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    redo: bool
    stopping: Callable[[], bool]

    def config(self, objective: str, **changes: Any) -> ConfigDict:
        """The config of an objective; ``changes`` by dotted key, with ``__`` for each dot."""
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        return config_from(self.file, {**self.overrides, **changed})(objective)

    def variants(self, named: Variants, **always: Any) -> dict[str, ConfigDict]:
        """The configs of those variants whose objective is asked for."""
        return {
            name: self.config(objective, **always, **changes)
            for name, (objective, changes) in named.items()
            if objective in self.objectives
        }


def asked(config: str, objectives: Sequence[str], seeds: Sequence[int]) -> Asked:
    """Read the flags; the arguments are their defaults.

    Raises:
        UserError: the workdir is missing, or a list is malformed.
    """
    logging.set_verbosity(logging.WARNING)
    if not WORKDIR.value:
        raise UserError("--workdir is needed: where the results go")
    flag = flags.FLAGS["config"]
    given = flag.present
    names, numbers = parse_lists(
        OBJECTIVES.value if OBJECTIVES.present else objectives,
        SEEDS.value if SEEDS.present else list(map(str, seeds)),
    )
    return Asked(
        config_flags.get_config_filename(flag) if given else config,
        flag.override_values if given else {},
        Path(WORKDIR.value),
        names,
        tuple(numbers),
        REDO.value,
        stop_on_signals(),
    )


def refuse(names: Iterable[str], why: str) -> None:
    """Raise `UserError` if one of these flags is given, which this experiment does not read."""
    for name in names:
        if flags.FLAGS[name].present:
            raise UserError(f"--{name}: {why}: leave it out")


def train(
    wanted: Asked, configs: Mapping[str, ConfigDict], folder: Path, seeds: Iterable[int]
) -> None:
    """Run named configs with these seeds of the policy on one reference (`sweep`)."""
    sweep(configs, folder, list(seeds), redo=wanted.redo, stopping=wanted.stopping)


def annotate(
    wanted: Asked,
    configs: Iterable[ConfigDict],
    folder: Path,
    *,
    reference: Path | None = None,
) -> None:
    """Run the stages up to `select` for a sweep in ``folder``, and train no policy.

    Args:
        configs: of the sweep; the first one's stages are run.
        reference: the ``shared`` folder of another sweep whose reference is used.
    """
    config, *_ = configs = list(configs)
    config.select.columns = columns_of(configs, folder / "shared")
    run_stages(wanted, config, folder / "shared", UNTIL_SELECT, reference=reference)


def run_stages(
    wanted: Asked,
    config: ConfigDict,
    folder: Path,
    stages: tuple[str, ...],
    *,
    reference: Path | None = None,
) -> None:
    """Run these stages in ``folder``; those up to the reference are taken from ``reference``."""
    run = Run(
        folder,
        STAGES,
        config,
        allowed=stages,
        redo=wanted.redo,
        stopping=wanted.stopping,
        say=say,
        shared=reference,
        shared_stages=() if reference is None else UNTIL_REFERENCE,
    )
    with lock_workdir(run.folder), contextlib.suppress(Finished):
        recipe(config, run, prepare(config))
