"""What lm-eval says of reference and policy, side by side: their figures and the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.reports.statistics import bootstrap
from alol_jax.types import Interval

STDERR = "_stderr"
NAME, CELL = 28, 24  # characters of the columns of the table


class Outcome(NamedTuple):
    """What lm-eval found of one model. A metric is named like ``acc,none``: with its filter."""

    results: Mapping[str, Mapping[str, float]]  # task -> metric -> figure, and its standard error
    values: Mapping[tuple[str, str], Mapping[int, float]]  # (task, metric) -> document -> value
    documents: Mapping[str, int]  # of each task
    higher_is_better: Mapping[str, Mapping[str, bool]]  # task -> metric without its filter


class Figure(NamedTuple):
    """A figure and lm-eval's standard error, if it has one."""

    value: float
    stderr: float | None


class Score(NamedTuple):
    """A metric of a task."""

    task: str
    metric: str
    documents: int | None  # None for a group of tasks
    higher_is_better: bool | None  # None if the task does not say
    reference: Figure
    policy: Figure
    difference: float  # policy − reference
    # its 95 % interval, paired by document; None unless the metric is a mean over documents
    interval: tuple[float, float] | None


def scores(reference: Outcome, policy: Outcome, *, draws: int, seed: int) -> tuple[Score, ...]:
    """Compare what was found of both.

    Args:
        draws, seed: of the bootstrap.
    """
    return tuple(
        _score(reference, policy, task, metric, draws, seed)
        for task, figures in policy.results.items()
        for metric in figures
        if not metric.partition(",")[0].endswith(STDERR)
    )


def _score(reference, policy, task, metric, draws, seed) -> Score:
    name, _, kind = metric.partition(",")

    def figure(of: Outcome) -> Figure:
        return Figure(of.results[task][metric], of.results[task].get(f"{name}{STDERR},{kind}"))

    ours, theirs = figure(policy), figure(reference)
    change = _paired(reference, policy, task, metric, draws, seed)
    return Score(
        task,
        name if kind == "none" else f"{name} ({kind})",
        policy.documents.get(task),
        policy.higher_is_better.get(task, {}).get(name),
        theirs,
        ours,
        ours.value - theirs.value,
        None if change is None else (change.low, change.high),
    )


def _paired(reference, policy, task, metric, draws, seed) -> Interval | None:
    """The mean of the differences by document; None unless the figures are means over them, and
    finite."""
    both = [of.values.get((task, metric), {}) for of in (policy, reference)]
    if not both[0] or both[0].keys() != both[1].keys():
        return None
    columns = np.array([[values[document] for document in both[0]] for values in both])
    means = [of.results[task][metric] for of in (policy, reference)]
    if not np.isfinite(columns).all() or not np.allclose(
        columns.mean(axis=1), means, rtol=1e-6, atol=1e-9
    ):
        return None
    return bootstrap(columns[0] - columns[1], draws=draws, confidence=0.95, seed=seed)


def table(found: Sequence[Score]) -> str:
    """The scores as aligned text, at most 100 columns wide."""
    heads = ("reference", "policy", "policy - reference")
    lines = [
        "figures with lm-eval's standard error; of the difference the 95% interval, by document"
    ]
    lines.append(" " * NAME + "".join(f"{head:>{CELL}}" for head in heads))
    task = None
    for one in found:
        if one.task != task:
            task = one.task
            count = "" if one.documents is None else f" ({one.documents:,} documents)"
            lines.append(f"{task}{count}")
        arrow = {True: " (up)", False: " (down)", None: ""}[one.higher_is_better]
        name = f"  {one.metric[: NAME - 2 - len(arrow)]}{arrow}"
        cells = (_plain(one.reference), _plain(one.policy), _change(one))
        lines.append(f"{name:<{NAME}}" + "".join(f"{cell:>{CELL}}" for cell in cells))
    return "\n".join(lines)


def _plain(figure: Figure) -> str:
    error = "" if figure.stderr is None else f" +- {_number(figure.stderr)}"
    return f"{_number(figure.value)}{error}"


def _change(one: Score) -> str:
    ends = "" if one.interval is None else " [{:+.3f}, {:+.3f}]".format(*one.interval)
    sign = "" if math.isnan(one.difference) else "-" if one.difference < 0 else "+"
    return f"{sign}{_number(abs(one.difference))}{ends}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def to_json(found: Sequence[Score], settings: Mapping[str, object]) -> dict:
    """The scores and the settings they were found with, for a JSON file.

    Numbers that are not finite, which JSON does not have, are None.
    """
    rows = [
        one._asdict()
        | {"reference": _finite(one.reference), "policy": _finite(one.policy)}
        | {"difference": one.difference if math.isfinite(one.difference) else None}
        for one in found
    ]
    return {"settings": dict(settings), "scores": rows}


def _finite(figure: Figure) -> dict[str, float | None]:
    """The numbers of a figure, None for those that are not finite."""
    return {
        name: None if value is None or not math.isfinite(value) else value
        for name, value in figure._asdict().items()
    }
