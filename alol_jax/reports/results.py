"""The results of an evaluation: measures, verdict, text table and CSV.

Page, files and terminal all read the same ``measures``, so they cannot disagree.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.reports.statistics import signed
from alol_jax.reports.stored_rewards import (
    BLIND,
    deciding,
    digits_of_stored,
    explained,
    judged,
    rests_on,
)
from alol_jax.tables.table import Table
from alol_jax.types import (
    Evaluation,
    Interval,
    Scored,
    StoredMeasure,
    SystemScores,
    TestSet,
    ValueAudit,
)

DIFFERENCE = "policy-reference"
KL = "kl"
TOTAL = "total"
EVERY = "(all)"  # the "test set" of all test prompts
TEXT_METRICS = ("distinct-1", "distinct-2", "distinct-3", "length")
MAX_SETS = 6  # the text table lists test sets only up to this number
WIDTH = 100  # of the text table, in characters
FEW_PROMPTS = 30  # below this, a bootstrap percentile interval is known to be too narrow


class Measure(NamedTuple):
    """One metric of one system; ``None`` where it does not exist."""

    system: str  # "data", "reference", "policy" or ``DIFFERENCE``
    metric: str
    mean: float | None
    low: float | None
    high: float | None
    set: str = EVERY  # or the name of a test set


class Verdict(NamedTuple):
    badge: str
    tone: str  # "better", "worse" or "open"
    sentence: str


def measures(evaluation: Evaluation) -> tuple[Measure, ...]:
    """All measures of an evaluation, as a flat list.

    Every metric of every system, the paired differences (components and total), the KL, and the
    measures by the stored rewards with theirs; then, if there are several test sets, every metric,
    the difference in total reward and the measures by the stored rewards for each.

    Raises:
        ValueError: a system's number of components is not that of ``component_names``.
    """
    names, others = (*evaluation.component_names, TOTAL), evaluation.measure_names
    found = [m for s in evaluation.systems for m in _of_system(s, names, others)]
    if evaluation.differences:
        for name, interval in zip(names, evaluation.differences, strict=True):
            found.append(Measure(DIFFERENCE, name, *_ends(interval)))
    if evaluation.kl is not None:
        found.append(Measure("policy", KL, *_ends(evaluation.kl)))
    found += [measure for one in evaluation.stored for measure in _of_stored(one)]
    for one in evaluation.sets if len(evaluation.sets) > 1 else ():
        of_set = [m for s in one.systems for m in _of_system(s, names, others)]
        if one.difference is not None:
            of_set.append(Measure(DIFFERENCE, TOTAL, *_ends(one.difference)))
        of_set += [measure for stored in one.stored for measure in _of_stored(stored)]
        found += [measure._replace(set=one.name) for measure in of_set]
    return tuple(found)


def in_set(found: Sequence[Measure], name: str) -> dict[tuple[str, str], Measure]:
    """(system, metric) -> the measure on a test set, or on all prompts (``EVERY``)."""
    return {(m.system, m.metric): m for m in found if m.set == name}


def metric_names(evaluation: Evaluation) -> tuple[str, ...]:
    """The rows of the result table, in order."""
    return (*evaluation.component_names, TOTAL, *TEXT_METRICS, *evaluation.measure_names)


def reward_differences(evaluation: Evaluation, found: Sequence[Measure]) -> list[Measure]:
    """The paired differences in reward, components first, over all prompts."""
    rewards = (*evaluation.component_names, TOTAL)
    differ = (m for m in found if m.system == DIFFERENCE and m.set == EVERY)
    return [m for m in differ if m.metric in rewards]


def prompt_count(evaluation: Evaluation) -> int:
    """The number of test prompts that the policy answered."""
    return len(evaluation.policy["example_id"].distinct())


def verdict(evaluation: Evaluation) -> Verdict:
    """Say in plain words whether the policy beat the reference, and what that rests on."""
    count = prompt_count(evaluation)
    judgement = _by_reward(evaluation, count)
    sentence = " ".join((judgement.sentence, *rests_on(evaluation.agreement)))
    judgement = judgement._replace(sentence=sentence)
    changes = {one.name: one.difference for one in evaluation.stored}
    if not deciding(tuple(changes)):
        return judgement
    badge, tone, said = judged(changes, "the reference")
    few = " With so few prompts the intervals are too narrow." if count < FEW_PROMPTS else ""
    by_rows = f"By the stored rewards of {count:,} test prompts: {said}{few} {BLIND}"
    if evaluation.differences:
        return judgement._replace(sentence=f"{judgement.sentence} {by_rows}")
    return Verdict(badge, tone, f"No scorer judged the generated answers. {by_rows}")


def _by_reward(evaluation: Evaluation, count: int) -> Verdict:
    """The verdict by the rewards of the generated answers."""
    scores = {system.name: system.reward for system in evaluation.systems}
    if not evaluation.differences or scores["policy"] is None or scores["reference"] is None:
        return Verdict(
            "Not scored",
            "open",
            "Nothing can score a generated answer of this task, and the stored rewards of the test "
            "rows are all equal: policy and reference are compared by diversity and length only.",
        )
    change = evaluation.differences[-1]
    ends = (change.mean, change.low, change.high)
    digits = 2 if min(map(abs, ends)) >= 0.005 else 3  # so that only 0 is printed as 0.00
    prompts = f"{count:,} test prompt{'s' if count != 1 else ''}"
    earned = (
        f"policy earns {scores['policy'].mean:.{digits}f} against the reference's "
        f"{scores['reference'].mean:.{digits}f} on {prompts}: {signed(change.mean, digits)}"
    )
    if count == 1:
        only = f"One prompt shows no difference: the {earned}, and no interval can be given."
        return Verdict("Too few prompts", "open", only)
    within = (
        f"(95% interval {signed(change.low, digits)} to {signed(change.high, digits)}, paired)."
    )
    few = " With so few prompts the interval is too narrow." if count < FEW_PROMPTS else ""
    if change.low > 0:
        return Verdict("Better", "better", f"The {earned} {within}{few}")
    if change.high < 0:
        return Verdict("Worse", "worse", f"The policy is worse: the {earned} {within}{few}")
    sentence = f"No reliable difference: the {earned} {within}{few}"
    return Verdict("No reliable difference", "open", sentence)


def result_table(evaluation: Evaluation) -> str:
    """The measures as aligned text, at most 100 columns wide and ASCII except for names."""
    every = measures(evaluation)
    found = in_set(every, EVERY)
    systems = [system.name for system in evaluation.systems]
    metrics = metric_names(evaluation)
    shown = [one for one in evaluation.sets if 1 < len(evaluation.sets) <= MAX_SETS]
    names = ("paired difference", *metrics, *(f"  {one.name} ({one.prompts:,})" for one in shown))
    first = min(24, max(map(len, names)))
    count = prompt_count(evaluation)
    title = f"Means over {count:,} test prompts [95% bootstrap interval]"
    lines = [title, " " * first + "".join(f"{name:>25}" for name in systems)]
    for metric in metrics:
        cells = (f"{_plain(found[name, metric]):>25}" for name in systems)
        lines.append(f"{metric[:first]:<{first}}" + "".join(cells))
    lines.append("paired difference, policy - reference")
    if not evaluation.differences:
        lines.append("  none in reward: no scorer judges the generated answers")
    for m in reward_differences(evaluation, every):
        interval = _gain(Interval(m.mean, m.low, m.high), count, 3)
        lines.append(f"  {m.metric[: first - 2]:<{first - 2}}{interval:>25}")
    for said in rests_on(evaluation.agreement):
        lines += textwrap.wrap(said, WIDTH)
    lines += _stored_lines(evaluation)
    if evaluation.kl is not None:
        lines.append(f"policy's KL to the reference: {_plain(found['policy', KL])} nats")
    if len(evaluation.sets) > MAX_SETS:
        lines.append("total reward by test set: in the report")
    return "\n".join([*lines, *(_set_lines(evaluation, every, first) if shown else ())])


def _set_lines(evaluation: Evaluation, every: Sequence[Measure], first: int) -> list[str]:
    """The total reward on each test set, its difference, and what the stored rewards say.

    Args:
        first: the width of the names.
    """
    sets = [(one, _set_name(one, first)) for one in evaluation.sets]
    lines = ["total reward by test set (prompts)"]
    for one, name in sets:
        there = in_set(every, one.name)
        cells = (_plain(there[s.name, TOTAL], one.prompts) for s in evaluation.systems)
        lines.append(name + "".join(f"{cell:>25}" for cell in cells))
    if evaluation.differences:
        lines.append("paired difference in it, policy - reference")
        lines += [f"{name}{_gain(one.difference, one.prompts, 3):>25}" for one, name in sets]
    for measure in deciding([one.name for one in evaluation.stored]):
        title, digits = f"{measure} by test set", digits_of_stored(measure)
        lines.append(f"{title}{'rests on':>{first + 25 - len(title)}}{'policy - reference':>25}")
        for one, name in sets:
            of_set = {s.name: (s.rests_on, s.difference) for s in one.stored}
            rests, change = of_set.get(measure, ("-", None))
            lines.append(f"{name}{rests:>25}{_gain(change, one.prompts, digits):>25}")
    return lines


def _set_name(one: TestSet, width: int) -> str:
    """The name of a test set and its number of prompts, in this many characters."""
    count = f" ({one.prompts:,})"
    return f"  {one.name[: width - 2 - len(count)]}{count}".ljust(width)


def _gain(change: Interval | None, prompts: int, digits: int) -> str:
    """A difference with its interval; without it if there is only one prompt."""
    if change is None:
        return "-"
    mean, low, high = (f"{end:+.{digits}f}" for end in _ends(change))
    return mean if prompts == 1 else f"{mean} [{low}, {high}]"


def _stored_lines(evaluation: Evaluation) -> list[str]:
    """The measures by the stored rewards, with what they are."""
    if not evaluation.stored:
        return []
    heads = "".join(f"{name:>25}" for name in ("reference", "policy", "policy - reference"))
    lines = [f"{'by the stored rewards':<25}{heads}"]
    for one in evaluation.stored:
        digits = digits_of_stored(one.name)
        form = f".{digits}f"
        cells = [
            f"{ends.mean:{form}} [{ends.low:{form}}, {ends.high:{form}}]"
            for ends in (one.reference, one.policy)
        ]
        cells.append(_gain(one.difference, prompt_count(evaluation), digits))
        lines.append(f"{one.name:<25}" + "".join(f"{cell:>25}" for cell in cells))
    for said in explained([one.name for one in evaluation.stored]):
        lines += textwrap.wrap(plain(said), WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


def plain(text: str) -> str:
    """Write a sentence in ASCII, for a terminal."""
    return text.replace("log π − log π_ref", "log p - log p of the reference").replace("−", "-")


def by_prompt(rows: Table[Scored]) -> tuple[tuple[str, ...], np.ndarray]:
    """Average the rewards of each prompt over its responses.

    Returns:
        Prompt ids in order, and f64[prompts, components + 1]: the components, then the total.
    """
    scores = np.column_stack([rows["components"].matrix, rows["reward"]])
    codes = rows["example_id"].codes()
    order = np.argsort(codes, kind="stable")
    of_prompt = np.split(scores[order], np.flatnonzero(np.diff(codes[order])) + 1)
    means = np.array([np.mean(found, axis=0) for found in of_prompt])
    return tuple(rows["example_id"].distinct()), means


def answer_pairs(evaluation: Evaluation) -> list[tuple[Scored, Scored]]:
    """(reference, policy) answers to the same prompt, in test order.

    Raises:
        ValueError: the two systems did not answer the same prompts in the same order.
    """
    rows = list(zip(evaluation.reference, evaluation.policy, strict=True))
    for ours, theirs in rows:
        if ours.example_id != theirs.example_id:
            raise ValueError(
                f"reference answers {ours.example_id} where the policy answers {theirs.example_id}"
            )
    return rows


def sample_pairs(evaluation: Evaluation, count: int) -> list[tuple[Scored, Scored]]:
    """``count`` answer pairs, evenly spaced from the largest paired difference to the smallest.

    If nothing scored the answers, the pairs are evenly spaced over the test set instead.
    """
    rows = answer_pairs(evaluation)
    if evaluation.differences:
        rows.sort(key=lambda pair: pair[0].reward - pair[1].reward)
    picked = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[i] for i in picked]


def calibration_bins(audit: ValueAudit, *, bins: int) -> tuple[np.ndarray, ...]:
    """Sort rows into bins of equal width over the predictions; empty bins are left out.

    Returns:
        predicted, observed: f32[≤ bins], the means of each bin.
        error: f32[≤ bins], two standard errors of the observed mean; 0 for a single row.
        count: i32[≤ bins].
    """
    predicted, observed = np.asarray(audit.predicted), np.asarray(audit.observed)
    edges = np.linspace(predicted.min(), predicted.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, bins - 1)
    rows = [place == i for i in range(bins) if np.any(place == i)]
    count = np.array([row.sum() for row in rows])
    spread = np.array([observed[row].std(ddof=1) if row.sum() > 1 else 0.0 for row in rows])
    return (
        np.array([predicted[row].mean() for row in rows]),
        np.array([observed[row].mean() for row in rows]),
        2 * spread / np.sqrt(count),
        count,
    )


def explained_variance(audit: ValueAudit) -> float | None:
    """1 − mse / mse_of_mean; None if all observed rewards are equal."""
    return 1 - audit.mse / audit.mse_of_mean if audit.mse_of_mean > 0 else None


def to_csv(found: tuple[Measure, ...]) -> str:
    """The measures as CSV, one per line, in full precision; missing numbers are empty fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Measure._fields)
    writer.writerows(found)
    return text.getvalue()


def _of_system(
    system: SystemScores, names: tuple[str, ...], others: tuple[str, ...]
) -> list[Measure]:
    rewards: tuple[Interval | None, ...] = (None,) * len(names)
    if system.reward is not None:
        rewards = (*system.components, system.reward)
    found = []
    intervals = (*rewards, *system.distinct, system.length, *system.measures)
    for name, interval in zip((*names, *TEXT_METRICS, *others), intervals, strict=True):
        bounds = (None,) * 3 if interval is None else _ends(interval)
        found.append(Measure(system.name, name, *bounds))
    return found


def _of_stored(one: StoredMeasure) -> list[Measure]:
    by_system = {"reference": one.reference, "policy": one.policy, DIFFERENCE: one.difference}
    return [Measure(name, one.name, *_ends(ends)) for name, ends in by_system.items()]


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high


def _plain(measure: Measure, prompts: int | None = None) -> str:
    """The mean with its interval; without it if there is only one prompt."""
    if measure.mean is None:
        return "-"
    mean, low, high = (f"{x:.{digits_of(measure.metric)}f}" for x in measure[2:5])
    return mean if prompts == 1 else f"{mean} [{low}, {high}]"


def digits_of(metric: str) -> int:
    """The number of decimals with which tables print the metric."""
    return 1 if metric == "length" else 3
