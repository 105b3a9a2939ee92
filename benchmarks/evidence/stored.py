"""What finished runs stored: evaluations, annotated rows, how well V predicts, and fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alol_jax.objectives.registry import get_objective
from alol_jax.reports.results import explained_variance
from alol_jax.reports.statistics import pearson
from alol_jax.runs.artifacts import load_fields, load_result
from alol_jax.runs.workdir import finished_stage
from alol_jax.sweep import earlier_runs
from alol_jax.tables.table import Table
from alol_jax.types import Annotated, Evaluation, Policy, TrainingTable, Value, ValueAudit
from benchmarks.evidence.summaries import Plain


def runs_of(workdir: Path) -> Iterator[tuple[str, int, Path]]:
    """Yield name, seed and workdir of the evaluated runs of a sweep."""
    for folder in earlier_runs(workdir):
        name, _, seed = folder.name.rpartition("-")
        if seed.isdecimal():
            yield name, int(seed), folder


def evaluation_of(workdir: Path) -> Evaluation:
    """The evaluation of a finished run."""
    return load_result(finished_stage(workdir, "evaluate").folder, Evaluation)


def annotated(workdir: Path) -> Table[Annotated] | None:
    """The annotated training rows of a sweep or run; None if they are not there yet."""
    stage = finished_stage(workdir, "select")
    return None if stage is None else load_result(stage.folder, TrainingTable).rows


def audit_of(workdir: Path) -> ValueAudit:
    """How well V predicts prompts that it was not fitted to, among those it may be fitted to."""
    return load_fields(finished_stage(workdir, "fit_value").folder, Value, ("audit",))[0]


def value_of(workdir: Path) -> Plain:
    """V on held-out folds, and on the training rows, whose prompts it never sees."""
    audit, rows = audit_of(workdir), annotated(workdir)
    reward, value = rows["reward"], rows["value"]
    spread = float(np.var(reward))
    unexplained = float(np.mean((reward - value) ** 2))
    found = {
        "explained_held_out": explained_variance(audit),
        "explained_training_rows": 1 - unexplained / spread if spread else None,
        "pearson_training_rows": pearson(reward, value) if np.ptp(value) else None,
        "mean": float(value.mean()),
        "sd": float(value.std()),
    }
    rounded = {name: None if one is None else round(one, 4) for name, one in found.items()}
    return {"epochs": audit.epochs, **rounded, "kept": int(rows["kept"].sum()), "rows": len(rows)}


def fit_of(workdir: Path) -> Plain:
    """The chosen step, seconds of training, and the looks at the validation prompts."""
    objective = get_objective(finished_stage(workdir, "evaluate").config().objective.name)
    stage = finished_stage(workdir, "fit_policy_online" if objective.online else "fit_policy")
    step, looks, cost = load_fields(stage.folder, Policy, ("step", "validations", "cost"))
    return {
        "step": step,
        "seconds": cost.seconds,
        "looks": [[one.step, one.score, one.kl] for one in looks],
    }
