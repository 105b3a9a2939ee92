"""A comparison in words: the verdict, a description of the numbers, and numbers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alol_jax.reports.compare.rows import DATA, REFERENCE
from alol_jax.reports.compare.table import Comparison, Estimate
from alol_jax.reports.results import FEW_PROMPTS, TOTAL, Verdict, prompt_count
from alol_jax.reports.stored_rewards import BLIND, deciding, judged, rests_on
from alol_jax.types import Interval

MAX_COLUMNS = 5  # test sets side by side in one table


def verdict(found: Comparison) -> Verdict:
    """Say in a sentence which groups beat the base, and which is best."""
    trained = (group.row_name for group in found.trained if not found.is_base(group))
    gains = {name: found.difference(name) for name in trained}
    if not gains:
        return Verdict("Nothing to compare", "open", f"All runs are {_the(found.against)}.")
    judgement = _by_reward(found, gains)
    best = _best_by_stored(found, list(gains))
    if best is None:
        return judgement
    changes = _stored_changes(found, best)
    badge, tone, said = judged(changes, _the(found.against))
    sentence = f"By the stored rewards of the test rows, best is {best}: {said} {BLIND}"
    if None in gains.values():
        return Verdict(badge, tone, f"No scorer judged the generated answers. {sentence}")
    return judgement._replace(sentence=f"{judgement.sentence} {sentence}")


def _best_by_stored(found: Comparison, names: Sequence[str]) -> str | None:
    """The row that is best by the first deciding measure; None without such measures."""
    read = deciding(found.stored)
    there = [name for name in names if read and found.difference(name, read[0]) is not None]
    return max(there, key=lambda name: found.difference(name, read[0]).mean, default=None)


def _stored_changes(found: Comparison, name: str) -> dict[str, Interval]:
    """The differences of a row to the base in the measures by the stored rewards."""
    every = {metric: found.difference(name, metric) for metric in found.stored}
    return {metric: Interval(e.mean, e.low, e.high) for metric, e in every.items() if e is not None}


def _by_reward(found: Comparison, gains: Mapping[str, Estimate | None]) -> Verdict:
    """The verdict by the rewards of the generated answers."""
    if None in gains.values():
        said = "The answers, or those they are compared with, have no rewards to compare."
        return Verdict("Not scored", "open", said)
    best = max(gains, key=lambda name: gains[name].mean)
    mean, interval = (text.replace("-", "−") for text in format_estimate(gains[best]))
    total = format_value(TOTAL, found.value(best, TOTAL).mean)
    base = _the(found.against)
    earned = f"{best} earns {total}, {mean} against {base}"
    prompts = prompt_count(found.runs[0].evaluation)
    if prompts == 1:
        said = f"{earned}; one prompt gives no interval."
        return Verdict("Too few prompts", "open", said)
    more = sum(gain.low > 0 for gain in gains.values())
    less = sum(gain.high < 0 for gain in gains.values())
    sentence = f"{earned} (95% interval {interval}, paired)."
    if len(gains) > 1:
        sentence = (
            f"Compared with {base}, {more} of {len(gains)} earn reliably more, {less} "
            f"reliably less, and {len(gains) - more - less} show no reliable difference. Best: "
            f"{sentence}"
        )
    sentence += " With so few prompts the intervals are too narrow." * (prompts < FEW_PROMPTS)
    sentence = " ".join((sentence, *rests_on(found.runs[0].evaluation.agreement)))
    if gains[best].low > 0:
        return Verdict(f"Better than {base}", "better", sentence)
    if less == len(gains):
        return Verdict(f"Worse than {base}", "worse", sentence)
    return Verdict("No reliable difference", "open", sentence)


def description(found: Comparison) -> tuple[str, ...]:
    """What the numbers are, in two or three sentences."""
    count = prompt_count(found.runs[0].evaluation)
    said = [
        f"Means over {count:,} test prompts [95% bootstrap interval over the prompts].",
        f"The difference to {_the(found.against)} is taken prompt by prompt before it is averaged.",
    ]
    if found.against == REFERENCE and len(found.references) > 1:
        said[1] = f"{said[1][:-1]}; each run's reference is its own."
    if found.has_spread:
        said.append(
            "A row with several seeds is the mean of their runs; its interval is still over the "
            "prompts, and the spread over seeds is given as sd and range."
        )
    return (*said, *rests_on(found.runs[0].evaluation.agreement))


def _the(name: str) -> str:
    return f"the {name}" if name in (REFERENCE, DATA) else name


def format_estimate(estimate: Estimate) -> tuple[str, str]:
    """The mean and the interval as rounded text; the interval is "" if there is none."""
    ends = (estimate.mean, estimate.low, estimate.high)
    if estimate.low is None:
        return format_value(estimate.metric, estimate.mean), ""
    digits = 1 if estimate.metric == "length" else _digits(max(map(abs, ends)))
    mean, low, high = (f"{x:{'+' if estimate.against else ''}.{digits}f}" for x in ends)
    return mean, f"[{low}, {high}]"


def format_value(metric: str, value: float) -> str:
    """A value of the metric as rounded text."""
    if metric == "flops":
        return f"{value:.2e}".replace("e+", "e")
    if metric in ("tokens", "seconds"):
        return f"{value:,.0f}"
    if metric == "step":
        return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    return f"{value:.1f}" if metric == "length" else f"{value:.{_digits(abs(value))}f}"


def in_chunks(names: Sequence[str]) -> tuple[Sequence[str], ...]:
    """Split the names into chunks of at most ``MAX_COLUMNS``, which fit on a page."""
    return tuple(names[i : i + MAX_COLUMNS] for i in range(0, len(names), MAX_COLUMNS))


def set_name(name: str) -> str:
    """The printed name of a test set; prompts without a source have the empty name."""
    return name or "no source"


def _digits(largest: float) -> int:
    """The number of decimals that gives four to five digits in all."""
    return next((3 - n for n, bound in enumerate((10, 100, 1000)) if largest < bound), 0)
