"""The numbers of a comparison: every row's metrics, means over seeds and paired differences.

Page, files and terminal all read the same ``estimates``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.paths import resolve
from alol_jax.reports import statistics
from alol_jax.reports.compare.rows import DATA, REFERENCE, RUN, Group, Row, RunResult, group_runs
from alol_jax.reports.results import EVERY, TEXT_METRICS, TOTAL
from alol_jax.reports.statistics import bootstrap
from alol_jax.runs.progress import progress
from alol_jax.types import Evaluation, Interval, Watch

CONFIDENCE = 0.95  # of every interval, as in `evaluate`
COST_METRICS = ("tokens", "seconds", "flops", "step")
"""Metrics of a run's training: its cost, and the optimizer step that was kept."""


class Estimate(NamedTuple):
    """One metric of one row, or of the mean over the seeds of a group."""

    row: str
    against: str  # "" for a value; for a paired difference, the row that was subtracted
    set: str  # ``EVERY`` or the name of a test set
    metric: str
    mean: float
    low: float | None = None  # bootstrap interval over the test prompts
    high: float | None = None
    seeds: int = 1  # with fewer than 2, all that follow are None
    sd: float | None = None
    least: float | None = None
    most: float | None = None
    iqm: float | None = None  # interquartile mean over seeds, and its interval
    iqm_low: float | None = None
    iqm_high: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that the page, the files and the terminal show.

    Attributes:
        against: the name of what every row is compared with; "reference" means each run's own.
        rewards: the components, then the total.
        sets: the test sets; empty if there is only one.
        stored: the measures by the stored rewards.
        estimates: by (row, against or "", set, metric).
    """

    runs: tuple[RunResult, ...]
    groups: tuple[Group, ...]
    against: str
    rewards: tuple[str, ...]
    sets: tuple[str, ...]
    stored: tuple[str, ...]
    estimates: dict[tuple[str, str, str, str], Estimate]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all groups."""
        return tuple(row for group in self.groups for row in group.rows)

    @property
    def trained(self) -> tuple[Group, ...]:
        """The groups of runs."""
        return tuple(group for group in self.groups if group.kind == RUN)

    @property
    def references(self) -> tuple[Row, ...]:
        """The rows of the reference policies."""
        return tuple(row for row in self.rows if row.kind == REFERENCE)

    @property
    def has_spread(self) -> bool:
        """Does any group have several seeds?"""
        return any(len(group.rows) > 1 for group in self.groups)

    def is_base(self, group: Group) -> bool:
        """Is the group what the others are compared with?"""
        return self.against in (group.name, group.row_name)

    def value(self, row: str, metric: str, test_set: str = EVERY) -> Estimate | None:
        """A metric of a row; None if it has none."""
        return self.estimates.get((row, "", test_set, metric))

    def difference(self, row: str, metric: str = TOTAL, test_set: str = EVERY) -> Estimate | None:
        """Row − ``against``; None if one of the two was not scored."""
        return self.estimates.get((row, self.against, test_set, metric))


class Columns(NamedTuple):
    """What is compared prompt by prompt: the rewards, or the measures by the stored rewards."""

    names: tuple[str, ...]
    of: Callable[[Row], np.ndarray | None]  # f64[prompts, names] of a row
    masks: Mapping[str, np.ndarray]  # test set -> bool[prompts]


class Base(NamedTuple):
    """What the rows are compared with."""

    name: str
    # rows, what of them -> what to subtract from theirs
    values: Callable[[Sequence[Row], Callable[[Row], np.ndarray | None]], np.ndarray | None]


def compare_runs(runs: Sequence[RunResult], *, against: str | None) -> Comparison:
    """Compare runs that `finished_runs.read_runs` found comparable.

    Args:
        against: a group, a row or a workdir; None for nll if exactly one group is nll, otherwise
            the reference.

    Raises:
        UserError: ``against`` matches none of them, or several.
    """
    first = runs[0].evaluation
    sets = tuple(found.name for found in first.sets) if len(first.sets) > 1 else ()
    rewards = (*first.component_names, TOTAL)
    groups = group_runs(runs)
    base = _base(groups, against)
    masks, stored = _set_masks(first, sets), tuple(one.name for one in first.stored)
    compared = (
        Columns(rewards, lambda row: row.values, masks),
        Columns(stored, lambda row: row.stored, {EVERY: masks[EVERY]}),
    )
    found = []
    for group in progress(groups, Watch("intervals"), total=len(groups)):
        values = [list(_values(row, rewards, sets)) for row in group.rows]
        differences = [_differences(row, base, compared) for row in group.rows]
        for its_values, its_differences in zip(values, differences, strict=True):
            found += [*its_values, *its_differences]
        if len(group.rows) > 1:
            found += _over_seeds(group, values, differences, compared, base)
    return Comparison(
        tuple(runs),
        groups,
        base.name,
        rewards,
        sets,
        stored,
        {(e.row, e.against, e.set, e.metric): e for e in found},
    )


def _set_masks(evaluation: Evaluation, sets: Sequence[str]) -> dict[str, np.ndarray]:
    """Test set -> bool[prompts], the test prompts that are in it."""
    answers = evaluation.policy
    sources = np.array(list(answers["source"].take(answers["example_id"].firsts())))
    return {EVERY: np.ones(len(sources), bool)} | {name: sources == name for name in sets}


def _values(row: Row, rewards: Sequence[str], sets: Sequence[str]):
    """The metrics of a row, as its run stored them."""
    scored = {EVERY: row.scores} | {name: row.sets[name] for name in sets}
    for name, scores in scored.items():
        if scores.reward is not None:
            for metric, found in zip(rewards, (*scores.components, scores.reward), strict=True):
                yield Estimate(row.name, "", name, metric, *_ends(found))
        for metric, found in zip(TEXT_METRICS, (*scores.distinct, scores.length), strict=True):
            yield Estimate(row.name, "", name, metric, *_ends(found))
    for metric, found in row.measures.items():
        yield Estimate(row.name, "", EVERY, metric, *_ends(found))
    if row.kind == RUN:
        fit, kl = row.run.fit, row.run.evaluation.kl
        if kl is not None:
            yield Estimate(row.name, "", EVERY, "kl", *_ends(kl))
        cost = (fit.cost.tokens, fit.cost.seconds, fit.cost.flops, fit.step * row.run.updates)
        for metric, mean in zip(COST_METRICS, cost, strict=True):
            yield Estimate(row.name, "", EVERY, metric, mean)


def _differences(row: Row, base: Base, compared: Sequence[Columns]) -> list[Estimate]:
    """The paired differences of a row to the base."""
    found = []
    for columns in compared:
        ours, theirs = columns.of(row), base.values((row,), columns.of)
        gain = None if ours is None or theirs is None else ours - theirs
        found += _intervals(row.name, base.name, gain, columns, row.run)
    return found


def _intervals(
    name: str, against: str, values: np.ndarray | None, columns: Columns, run: RunResult
) -> list[Estimate]:
    """Means of f64[prompts, names] with bootstrap intervals.

    All names over all prompts, and the total reward over each test set. The resamples are those of
    the run's own evaluation.
    """
    if values is None:
        return []
    found = []
    for test_set, mask in columns.masks.items():
        for metric, column in zip(columns.names, values[mask].T, strict=True):
            if test_set == EVERY or metric == TOTAL:
                ends = bootstrap(
                    column, draws=run.draws, confidence=CONFIDENCE, seed=run.shared_seed
                )
                found.append(Estimate(name, against, test_set, metric, *_ends(ends)))
    return found


def _over_seeds(
    group: Group,
    values: Sequence[Sequence[Estimate]],
    differences: Sequence[Sequence[Estimate]],
    compared: Sequence[Columns],
    base: Base,
) -> list[Estimate]:
    """The means over the seeds of a group, with their spread.

    The interval of a mean is still over prompts: each prompt's values are averaged over the seeds
    before the bootstrap.
    """
    intervals = {}
    for columns in compared:
        mean = _mean([columns.of(row) for row in group.rows])
        if mean is None:
            continue
        theirs = base.values(group.rows, columns.of)
        gain = None if theirs is None else mean - theirs
        for against, by_prompts in (("", mean), (base.name, gain)):
            for e in _intervals(group.name, against, by_prompts, columns, group.rows[0].run):
                intervals[against, e.set, e.metric] = (e.mean, e.low, e.high)
    seeds: dict[tuple[str, str, str], list[float]] = {}
    for e in (e for row in (*values, *differences) for e in row):
        seeds.setdefault((e.against, e.set, e.metric), []).append(e.mean)
    found = []
    for key, means in seeds.items():
        if len(means) < len(group.rows):
            continue
        ends = _ends(over_seeds(np.array(means), group.rows[0].run))
        found.append(
            Estimate(
                group.name,
                *key,
                *intervals.get(key, (float(np.mean(means)), None, None)),
                seeds=len(means),
                sd=float(np.std(means, ddof=1)),
                least=min(means),
                most=max(means),
                **dict(zip(("iqm", "iqm_low", "iqm_high"), ends, strict=True)),
            )
        )
    return found


def over_seeds(scores: np.ndarray, run: RunResult) -> Interval:
    """`statistics.over_seeds` of f64[seeds], with the resamples of the run's evaluation."""
    return statistics.over_seeds(
        scores, draws=run.draws, confidence=CONFIDENCE, seed=run.shared_seed
    )


def _base(groups: Sequence[Group], against: str | None) -> Base:
    """Find what ``against`` names."""
    if against is None:
        nll = [g.name for g in groups if g.kind == RUN and g.rows[0].run.objective == "nll"]
        against = nll[0] if len(nll) == 1 else REFERENCE
    if against == REFERENCE:
        references = {
            row.run.reference: row
            for group in groups
            if group.kind == REFERENCE
            for row in group.rows
        }
        return Base(REFERENCE, lambda rows, of: _mean(list(map(of, _own(rows, references)))))
    name, bases = _find_rows(groups, against)
    return Base(name, lambda rows, of: _mean(list(map(of, bases))))


def _mean(values: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The mean over rows; None if one has no values."""
    return None if any(v is None for v in values) else np.mean(values, axis=0)


def _find_rows(groups: Sequence[Group], name: str) -> tuple[str, Sequence[Row]]:
    """The rows of the group with this name, or the row with this name or workdir."""
    for group in groups:
        if group.name == name:
            return name, group.rows
    rows = [row for group in groups for row in group.rows]
    here = resolve(name)
    found = [row for row in rows if row.kind == RUN and resolve(row.run.workdir) == here]
    found = found or [row for row in rows if name in _names(row)]
    if len(found) > 1:
        raise UserError(
            f"--against: {len(found)} workdirs are called {name!r}: give the path of one"
        )
    if not found:
        known = [group.name for group in groups] + [row.name for row in rows]
        raise UserError.unknown(f"--against: no row is called {name!r}", name, dict.fromkeys(known))
    return found[0].name, found


def _names(row: Row) -> tuple[str, ...]:
    return (row.name, row.run.workdir.name) if row.kind == RUN else (row.name,)


def _own(rows: Sequence[Row], references: Mapping[str, Row]) -> list[Row]:
    """The references of the rows' policies; for the data, all references."""
    if any(row.kind == DATA for row in rows):
        return list(references.values())
    return [references[row.run.reference] for row in rows]


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high
