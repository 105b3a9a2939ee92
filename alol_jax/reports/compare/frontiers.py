"""Reward against the KL to the reference: of the chosen steps, and of all validations."""

from __future__ import annotations

import numpy as np

from alol_jax.reports.compare.figures import Point, Series, curves, frontier
from alol_jax.reports.compare.rows import Group
from alol_jax.reports.compare.table import Comparison, Estimate
from alol_jax.reports.page import Figure, Section
from alol_jax.reports.results import TOTAL
from alol_jax.types import Interval, Validation

KL = "KL to the reference on own answers (nats)"


def frontier_section(found: Comparison) -> Section | None:
    """The test prompts' reward of each group, and the validations of each run, against their KL."""
    figures = (_chosen(found), _looks(found))
    drawn = tuple(figure for figure in figures if figure is not None)
    if not drawn:
        return None
    text = (
        "Of two policies with the same reward, the one nearer to the reference has changed less of "
        "what was not asked for.",
    )
    return Section("frontiers", "Reward against distance", text, figures=drawn)


def _chosen(found: Comparison) -> Figure | None:
    points = _points(found)
    if not points:
        return None
    own = [found.value(row.name, TOTAL) for row in found.references]
    start = own[0].mean if len(own) == 1 and own[0] is not None else None
    caption = (
        "On the test prompts, at the chosen step. The vertical line is the 95% interval of the "
        "reward over prompts. Groups of one objective are joined: they differ in their settings."
    )
    if found.has_spread:
        caption += (
            " Small marks are seeds; the thick line is the 95% interval of the interquartile mean "
            "over the seeds."
        )
    svg = frontier(points, start, label="total reward", over=KL)
    return Figure("Chosen steps", svg, caption)


def _points(found: Comparison) -> list[Point]:
    points = []
    for number, group in enumerate(found.trained):
        kl, total = found.value(group.row_name, "kl"), found.value(group.row_name, TOTAL)
        if kl is not None and total is not None:
            each = tuple(
                (found.value(row.name, "kl").mean, found.value(row.name, TOTAL).mean)
                for row in group.rows
            )
            points.append(
                Point(
                    name=group.row_name,
                    family=group.rows[0].run.objective,
                    x=kl.mean,
                    y=Interval(total.mean, total.low, total.high),
                    middle=_over_seeds(total),
                    seeds=each,
                    series=number,
                )
            )
    return points


def _over_seeds(total: Estimate) -> Interval | None:
    """The interquartile mean; None where there are not two seeds."""
    return None if total.iqm is None else Interval(total.iqm, total.iqm_low, total.iqm_high)


def _looks(found: Comparison) -> Figure | None:
    """The validations of all runs that measured their KL, from the reference on."""
    metrics = dict.fromkeys(one.metric for run in found.runs for one in run.fit.validations)
    series = [_series(group) for group in found.trained]
    if len(metrics) != 1 or not any(one.runs for one in series):
        return None
    (metric,) = metrics
    svg = curves(series, label=metric, over=KL, marks=True, whole=False)
    caption = (
        "On the validation prompts: each mark is a validation, from the reference on, at KL 0. "
        "Thin: seeds; bold: their mean."
    )
    return Figure("Validations", svg, caption)


def _series(group: Group) -> Series:
    looks = [_measured(row.run.fit.validations) for row in group.rows]
    return Series(group.name, tuple((x, y) for x, y in looks if len(x)))


def _measured(looks: tuple[Validation, ...]) -> tuple[np.ndarray, np.ndarray]:
    """KL and score of the validations that measured both."""
    points = [(look.kl, look.score) for look in looks if look.kl is not None]
    x, y = np.array(points, float).reshape(-1, 2).T
    return x, y
