"""The rows of a comparison: which systems there are, what they are called, which are seeds of one.

A run is called by its objective and seed. Runs whose configs differ by seeds alone are one group;
where two groups have the same objective, the settings that tell them apart are in their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.reports.results import by_prompt
from alol_jax.types import Cost, Curve, Evaluation, Scored, SystemScores, Validation

REFERENCE, DATA, RUN = "reference", "data", "run"
"""The kinds of rows; the first two are also names of rows."""
LONGEST = 24  # characters of a setting in a name


@dataclasses.dataclass(frozen=True)
class Fit:
    """A `Policy` without its parameters."""

    step: int
    validations: tuple[Validation, ...]
    curves: tuple[Curve, ...]
    cost: Cost


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a comparison reads of one run.

    Attributes:
        seed: of the policy's own randomness; ``shared_seed`` of everything else.
        settings: the rest of the config, flat; runs of one objective and equal settings are seeds
            of the same thing.
        model, reference: what identifies the base model and the reference policy.
        draws: resamples of a bootstrap.
        updates: optimizer steps in a step of its fit: 1, but for rollouts.
    """

    workdir: Path
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
    run: RunResult  # of a reference and of the data: the first run that has it
    scores: SystemScores
    sets: Mapping[str, SystemScores]
    values: np.ndarray | None  # f64[prompts, components + 1], the total last; None: not scored


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that differ by nothing but seeds."""

    name: str
    kind: str
    rows: tuple[Row, ...]

    @property
    def line(self) -> str:
        """The row of the group's figures: its own name, or that of its only row."""
        return self.name if len(self.rows) > 1 else self.rows[0].name


def grouped(runs: Sequence[RunResult]) -> tuple[Group, ...]:
    """Runs by objective and settings in the order given, then the references, then the data."""
    alike: dict[tuple[str, str, str], list[RunResult]] = {}
    for run in runs:
        settings = repr(sorted(run.settings.items()))
        alike.setdefault((run.objective, run.model, settings), []).append(run)
    groups = []
    for name, members in zip(_group_names(list(alike.values())), alike.values(), strict=True):
        called = _apart(name, members, [run.seed for run in members])
        rows = tuple(_row(*pair, RUN) for pair in zip(called, members, strict=True))
        groups.append(Group(name, RUN, rows))
    references = list({run.reference: run for run in reversed(runs)}.values())[::-1]
    called = (REFERENCE,)
    if len(references) > 1:
        called = _apart(REFERENCE, references, [run.shared_seed for run in references])
    rows = tuple(_row(*pair, REFERENCE) for pair in zip(called, references, strict=True))
    return (
        *groups,
        Group(REFERENCE, REFERENCE, rows),
        Group(DATA, DATA, (_row(DATA, runs[0], DATA),)),
    )


def differing(runs: Iterable[RunResult]) -> tuple[str, ...]:
    """The settings that are not the same in all runs that have them, in the order of the config."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            found.setdefault(name, set()).add(repr(value))
    return tuple(name for name, values in found.items() if len(values) > 1)


def _group_names(groups: Sequence[Sequence[RunResult]]) -> list[str]:
    """The objective, with the settings that tell groups of one objective apart."""
    names = []
    for group in groups:
        objective = group[0].objective
        rivals = [other[0] for other in groups if other[0].objective == objective]
        names.append(objective + (_told_apart(group[0], rivals) if len(rivals) > 1 else ""))
    return names


def _told_apart(run: RunResult, rivals: Sequence[RunResult]) -> str:
    """`` (clip=0.2)``: as few settings as it takes, the workdir where no setting does it."""
    fields = differing(rivals)
    chosen: list[str] = []
    parts = 1
    while parts < len(rivals):
        split = {field: _parts(rivals, (*chosen, field)) for field in fields}
        best = max(split, key=split.__getitem__, default=None)
        if best is None or split[best] == parts:
            return f" ({run.workdir.name})"
        chosen, parts = [*chosen, best], split[best]
    said = (f"{field.rsplit('.', 1)[-1]}={_said(run.settings.get(field))}" for field in chosen)
    return f" ({', '.join(said)})"


def _parts(runs: Sequence[RunResult], fields: Sequence[str]) -> int:
    """Into how many the settings divide the runs, as they are printed."""
    return len({tuple(_said(run.settings.get(field)) for field in fields) for run in runs})


def _said(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else "…" + text[1 - LONGEST :]


def _apart(name: str, runs: Sequence[RunResult], seeds: Sequence[int]) -> Sequence[str]:
    """Names for runs of one group: by seed, or by workdir where seeds are shared."""
    numbered = [f"{name} · seed {seed}" for seed in seeds]
    placed = [f"{name} · {run.workdir.name}" for run in runs]
    paths = [f"{name} · {run.workdir}" for run in runs]
    return next((n for n in (numbered, placed) if len(set(n)) == len(n)), paths)


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
    return Row(name, kind, run, scores, sets, values)


def _scores(name: str, systems: Sequence[SystemScores]) -> SystemScores:
    return next(system for system in systems if system.name == name)


def _values(rows: Sequence[Scored], policy: Sequence[Scored]) -> np.ndarray:
    """The rewards of a system, prompt by prompt in the order of the policy's answers.

    Raises:
        ValueError: they are not of the same prompts.
    """
    names, values = by_prompt(rows)
    if names != by_prompt(policy)[0]:
        raise ValueError("the systems of one evaluation did not answer the same prompts")
    return values
