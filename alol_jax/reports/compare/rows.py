"""The rows of a comparison: group runs by seed, and name the groups and rows.

A run is named by its objective and seed. Runs whose configs differ only in seeds form a group. If
two groups have the same objective, their names include the settings in which they differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alol_jax.paths import AnyPath
from alol_jax.reports.results import by_prompt
from alol_jax.tables.table import Table
from alol_jax.types import (
    Cost,
    Curve,
    Evaluation,
    Interval,
    Scored,
    SystemScores,
    Validation,
)

REFERENCE, DATA, RUN = "reference", "data", "run"
"""The kinds of rows; the first two are also names of rows."""
MAX_SETTING = 24  # longest value of a setting in a name, in characters


@dataclasses.dataclass(frozen=True)
class Fit:
    """A `Policy` without its parameters."""

    step: int
    validations: tuple[Validation, ...]
    curves: tuple[Curve, ...]
    cost: Cost


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a comparison needs to know about one run.

    Attributes:
        seed: of the policy's training; ``shared_seed`` is that of everything else.
        settings: the flat config without seeds; runs with the same objective, model and settings
            are one group.
        model, reference: identify the base model and the reference policy.
        draws: number of bootstrap resamples.
        updates: optimizer steps per step of the fit: 1, except for PPO.
    """

    workdir: AnyPath
    objective: str
    seed: int
    shared_seed: int
    settings: Mapping[str, Any]
    model: str
    reference: str
    draws: int
    updates: int
    evaluation: Evaluation
    fit: Fit


@dataclasses.dataclass(frozen=True)
class Row:
    """One system of the comparison: a run's policy, a reference, or the data's own responses."""

    name: str
    kind: str  # ``RUN``, ``REFERENCE`` or ``DATA``
    run: RunResult  # for a reference and for the data: the first run that has it
    scores: SystemScores
    sets: Mapping[str, SystemScores]
    values: np.ndarray | None  # f64[prompts, components + 1], the total last; None if not scored
    # f64[prompts, measures] by the stored rewards (`stored_rewards`); None if there are none
    stored: np.ndarray | None = None

    @property
    def measures(self) -> Mapping[str, Interval]:
        """The measures by the stored rewards."""
        if self.stored is None:
            return {}
        found = self.run.evaluation.stored
        return {one.name: one.policy if self.kind == RUN else one.reference for one in found}


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that differ only in their seeds."""

    name: str
    kind: str
    rows: tuple[Row, ...]

    @property
    def row_name(self) -> str:
        """The row with the group's results: the group's name, or that of its only row."""
        return self.name if len(self.rows) > 1 else self.rows[0].name


def group_runs(runs: Sequence[RunResult]) -> tuple[Group, ...]:
    """Group runs by objective and settings, in order; then the references, then the data."""
    by_settings: dict[tuple[str, str, str], list[RunResult]] = {}
    for run in runs:
        settings = repr(sorted(run.settings.items()))
        by_settings.setdefault((run.objective, run.model, settings), []).append(run)
    seeds = list(by_settings.values())
    groups = []
    for name, members in zip(_group_names(seeds), seeds, strict=True):
        names = _run_names(name, members, [run.seed for run in members])
        rows = tuple(_row(*pair, RUN) for pair in zip(names, members, strict=True))
        groups.append(Group(name, RUN, rows))
    references = list({run.reference: run for run in reversed(runs)}.values())[::-1]
    names = (REFERENCE,)
    if len(references) > 1:
        names = _run_names(REFERENCE, references, [run.shared_seed for run in references])
    rows = tuple(_row(*pair, REFERENCE) for pair in zip(names, references, strict=True))
    return (
        *groups,
        Group(REFERENCE, REFERENCE, rows),
        Group(DATA, DATA, (_row(DATA, runs[0], DATA),)),
    )


def differing_settings(runs: Iterable[RunResult]) -> tuple[str, ...]:
    """The settings that differ between the runs that have them, in config order."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            found.setdefault(name, set()).add(repr(value))
    return tuple(name for name, values in found.items() if len(values) > 1)


def _group_names(groups: Sequence[Sequence[RunResult]]) -> list[str]:
    """The objective of each group, with settings if several groups have the same objective."""
    names = []
    for group in groups:
        objective = group[0].objective
        rivals = [other[0] for other in groups if other[0].objective == objective]
        names.append(objective + (_name_suffix(group[0], rivals) if len(rivals) > 1 else ""))
    return names


def _name_suffix(run: RunResult, rivals: Sequence[RunResult]) -> str:
    """`` (clip=0.2)``: the fewest settings that separate the rivals, or else the workdir."""
    fields = differing_settings(rivals)
    chosen: list[str] = []
    parts = 1
    while parts < len(rivals):
        split = {field: _parts(rivals, (*chosen, field)) for field in fields}
        best = max(split, key=split.__getitem__, default=None)
        if best is None or split[best] == parts:
            return f" ({run.workdir.name})"
        chosen, parts = [*chosen, best], split[best]
    texts = (f"{field.rsplit('.', 1)[-1]}={_format(run.settings.get(field))}" for field in chosen)
    return f" ({', '.join(texts)})"


def _parts(runs: Sequence[RunResult], fields: Sequence[str]) -> int:
    """The number of different combinations of these settings, as printed."""
    return len({tuple(_format(run.settings.get(field)) for field in fields) for run in runs})


def _format(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_SETTING else "…" + text[1 - MAX_SETTING :]


def _run_names(name: str, runs: Sequence[RunResult], seeds: Sequence[int]) -> Sequence[str]:
    """Names for the runs of a group: by seed, or by workdir if seeds repeat."""
    by_seed = [f"{name} · seed {seed}" for seed in seeds]
    by_folder = [f"{name} · {run.workdir.name}" for run in runs]
    by_path = [f"{name} · {run.workdir}" for run in runs]
    return next((n for n in (by_seed, by_folder) if len(set(n)) == len(n)), by_path)


def _row(name: str, run: RunResult, kind: str) -> Row:
    evaluation = run.evaluation
    system, rows = {
        RUN: ("policy", evaluation.policy),
        REFERENCE: ("reference", evaluation.reference),
        DATA: ("data", evaluation.data),
    }[kind]
    scores = _scores(system, evaluation.systems)
    sets = {found.name: _scores(system, found.systems) for found in evaluation.sets}
    values = None if scores.reward is None else _values(rows, evaluation.policy)
    stored = None
    if kind != DATA and evaluation.stored:
        stored = evaluation.by_prompt[system].matrix
    return Row(name, kind, run, scores, sets, values, stored)


def _scores(name: str, systems: Sequence[SystemScores]) -> SystemScores:
    return next(system for system in systems if system.name == name)


def _values(rows: Table[Scored], policy: Table[Scored]) -> np.ndarray:
    """The rewards of a system by prompt, in the order of the policy's answers.

    Raises:
        ValueError: the system answered other prompts than the policy.
    """
    names, values = by_prompt(rows)
    if names != by_prompt(policy)[0]:
        raise ValueError("the systems of one evaluation did not answer the same prompts")
    return values
