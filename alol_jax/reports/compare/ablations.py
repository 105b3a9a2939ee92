"""Ablations: what a setting changes, seed by seed, within the runs of one objective."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alol_jax.reports.compare.figures import Bar, differences
from alol_jax.reports.compare.rows import Group, Row
from alol_jax.reports.compare.table import Comparison, over_seeds
from alol_jax.reports.page import Cell, Column, Figure, Section, Table
from alol_jax.reports.page import Row as Line
from alol_jax.reports.results import TOTAL
from alol_jax.reports.statistics import signed
from alol_jax.types import Interval


class Ablation(NamedTuple):
    """A group compared with the base of its objective."""

    objective: str
    changed: str  # the settings in which it differs from the base
    each: tuple[float, ...]  # total reward, group − base, of each seed that both have
    middle: Interval  # interquartile mean over these seeds
    series: int  # of the group

    @property
    def name(self) -> str:
        """The objective, and what is changed."""
        return f"{self.objective}: {self.changed}"


def ablation_section(found: Comparison) -> Section | None:
    """Plot and table of all ablations; None if no objective was run with two settings."""
    ablations = ablations_of(found)
    if not ablations:
        return None
    bars = [Bar(one.name, one.middle, one.each, one.series) for one in ablations]
    svg = differences(bars, label="total reward, difference to the base of the objective")
    caption = (
        "Interquartile means (IQM) over the seeds that both have, with 95% intervals by a "
        "bootstrap over these seeds; ticks are the seeds. One seed has no interval."
    )
    columns = [Column(name, bool(name)) for name in HEADS]
    table = Table("", tuple(columns), tuple(_line(one) for one in ablations))
    text = (
        "The base of an objective has, of every setting that differs, the value that most of its "
        "runs have.",
    )
    return Section(
        *("ablations", "Ablations", text),
        tables=(table,),
        figures=(Figure("Difference to the base", svg, caption),),
    )


DIGITS = 3
HEADS = ("", "seeds", "mean", "IQM")


def _line(one: Ablation) -> Line:
    count, mean, middle = len(one.each), float(np.mean(one.each)), one.middle
    interval = f" [{signed(middle.low, DIGITS)}, {signed(middle.high, DIGITS)}]"
    return Line(
        (
            Cell(one.name),
            Cell(str(count), exact=count),
            Cell(signed(mean, DIGITS), exact=mean),
            Cell(signed(middle.mean, DIGITS) + interval * (count > 1), exact=middle.mean),
        )
    )


def ablations_of(found: Comparison) -> list[Ablation]:
    """Every group beside the base of its objective, in order; scored groups only."""
    scored = [
        (number, group)
        for number, group in enumerate(found.trained)
        if all(row.values is not None for row in group.rows)
    ]
    by_objective: dict[str, list[tuple[int, Group]]] = {}
    for number, group in scored:
        by_objective.setdefault(group.rows[0].run.objective, []).append((number, group))
    ablations = []
    for objective, groups in by_objective.items():
        base = base_of([group for _, group in groups])
        for number, group in groups:
            pairs = _pairs(group, base) if group is not base else []
            if pairs:
                gains = np.array([_gain(found, *pair) for pair in pairs])
                middle = over_seeds(gains, group.rows[0].run)
                changed, each = _changed(group, base), tuple(map(float, gains))
                ablations.append(Ablation(objective, changed, each, middle, number))
    return ablations


def base_of(groups: Sequence[Group]) -> Group:
    """The group with, of most settings, the most common value; the first of equal ones."""
    settings = [_printed(group) for group in groups]
    names = dict.fromkeys(name for one in settings for name in one)
    common = {
        name: collections.Counter(one.get(name) for one in settings).most_common(1)[0][0]
        for name in names
    }
    agreed = [sum(one.get(name) == common[name] for name in names) for one in settings]
    return groups[int(np.argmax(agreed))]


def _printed(group: Group) -> Mapping[str, str]:
    return {name: _text(value) for name, value in group.rows[0].run.settings.items()}


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _changed(group: Group, base: Group) -> str:
    mine, theirs = _printed(group), _printed(base)
    names = [name for name in mine if mine[name] != theirs.get(name)]
    return ", ".join(f"{name.rsplit('.', 1)[-1]}={mine[name]}" for name in names) or group.name


def _pairs(group: Group, base: Group) -> list[tuple[Row, Row]]:
    """The rows of the same seed in both groups."""
    theirs = {(row.run.seed, row.run.shared_seed): row for row in base.rows}
    keys = [(row.run.seed, row.run.shared_seed) for row in group.rows]
    return [(row, theirs[key]) for row, key in zip(group.rows, keys, strict=True) if key in theirs]


def _gain(found: Comparison, row: Row, base: Row) -> float:
    """The difference in total reward over all prompts."""
    return found.value(row.name, TOTAL).mean - found.value(base.name, TOTAL).mean
