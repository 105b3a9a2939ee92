"""The sections of the report about rewards: their transform, what is stored, and who judges."""

from __future__ import annotations

import numpy as np

from alol_jax.reports import figures
from alol_jax.reports.page import Cell, Column, Figure, Row, Section, Table
from alol_jax.reports.statistics import signed
from alol_jax.reports.stored_rewards import BLIND, digits_of_stored, explained
from alol_jax.rewards.transform import transformed
from alol_jax.types import (
    Agreement,
    Evaluation,
    Interval,
    RewardTransform,
    ScoredSplits,
    StoredMeasure,
)


def by_stored_rewards(evaluation: Evaluation) -> Section | None:
    """Reference and policy by the stored rewards of the test rows; None if there is nothing."""
    if not evaluation.stored:
        return None
    columns = (
        Column("measure", False),
        Column("rests on", False),
        Column("reference", True, "reference"),
        Column("policy", True, "policy"),
        Column("policy − reference", True),
    )
    tables = [Table("", columns, tuple(map(_row, evaluation.stored)))]
    by_set = [
        row._replace(cells=(Cell(one.name), *row.cells))
        for one in evaluation.sets
        for row in map(_row, one.stored)
    ]
    if by_set:
        columns = (Column("test set", False), *columns)
        tables.append(Table("By test set", columns, tuple(by_set)))
    text = (
        "What the stored rewards of the test rows say, without a scorer of generated answers; in "
        "brackets the 95% bootstrap interval over prompts.",
        *(
            f"{said[0].upper()}{said[1:]}."
            for said in explained([s.name for s in evaluation.stored])
        ),
        BLIND,
    )
    return Section("stored", "By the stored rewards", text, tables=tuple(tables))


def _row(one: StoredMeasure) -> Row:
    digits, gain = digits_of_stored(one.name), one.difference
    bounds = f"[{signed(gain.low, digits)}, {signed(gain.high, digits)}]"
    change = Cell(signed(gain.mean, digits), exact=gain.mean, interval=bounds)
    cells = (_interval(one.reference, digits), _interval(one.policy, digits), change)
    return Row((Cell(one.name), Cell(one.rests_on), *cells))


def judge(evaluation: Evaluation) -> Section | None:
    """How far the scorer of the answers agrees with the stored rewards; None if it gave them."""
    found = evaluation.agreement
    if found is None:
        return None
    of = "of one prompt" if found.within else "of any two rows: no prompt has two rewards"
    lines = [
        ("pairs ordered as the rewards do", f"{found.order.percent()} of {found.pairs:,} {of}"),
        ("the same if the longer one is preferred", f"{found.by_length:.0%}"),
        ("Pearson's correlation", _number(found.pearson)),
        ("Spearman's correlation", _number(found.spearman)),
        ("mean score − mean reward", f"{signed(found.bias, 3)} as it scores"),
        ("the same on the rewards' scale", signed(found.remaining, 3)),
    ]
    rows = tuple(Row((Cell(name), Cell(said))) for name, said in lines)
    columns = (Column("", False), Column(f"{found.rows:,} held-out rows", False))
    text = (
        f"The rewards of the data's rows are the stored ones; the generated answers are scored by "
        f"{found.scorer}. V and the choice of the step rest on that scorer, which was not fitted "
        "to these rows. Every figure of a generated answer's reward is as good as this agreement.",
        _scales(found),
    )
    return Section("judge", "The scorer of the answers", text, tables=(Table("", columns, rows),))


def _scales(found: Agreement) -> str:
    """What was done about the difference between the two scales."""
    if found.bias == found.remaining:  # it has been fitted to their scale
        return f"On average its scores lie {signed(found.bias, 3)} from the rewards."
    return (
        f"On average its scores lie {signed(found.bias, 3)} from the rewards. Since A = R − V "
        "subtracts one from the other, they are brought to the scale of the rewards, by a straight "
        f"line fitted to the training rows; {signed(found.remaining, 3)} remain on the held-out "
        "rows."
    )


def transform_figures(scored: ScoredSplits) -> tuple[Figure, ...]:
    """The transform of the reward, over the training rewards as they were; () if there is none."""
    used = scored.transform
    if used.name == "as_is" and not used.clip:
        return ()
    least, *between, most = used.percentiles
    before = np.array(between)  # a far reward would leave no room for the others
    svg = figures.transform(before, transformed(used, before), label=_said(used))
    caption = (
        "What the training rewards became: each dot is a percentile of the training rows, from the "
        "1st to the 99th, so that dots lie close where many rows are. The rewards in the data go "
        f"from {least:g} to {most:g}."
    )
    return (Figure("Transform of the reward", svg, caption),)


def _said(used: RewardTransform) -> str:
    clipped = f"clip {used.clip[0]:g} to {used.clip[1]:g}, " if used.clip else ""
    return f"{clipped}{used.name}"


def _interval(ends: Interval, digits: int) -> Cell:
    mean, low, high = (signed(x, digits).lstrip("+") for x in (ends.mean, ends.low, ends.high))
    return Cell(mean, exact=ends.mean, interval=f"[{low}, {high}]")


def _number(value: float | None) -> str:
    return "–" if value is None else signed(value, 2).lstrip("+")
