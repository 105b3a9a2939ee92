"""A comparison in words: the verdict, what the figures are, and figures as text."""

from __future__ import annotations

from collections.abc import Sequence

from alol_jax.reports.compare.rows import DATA, REFERENCE
from alol_jax.reports.compare.table import Comparison, Estimate
from alol_jax.reports.results import FEW, TOTAL, Verdict, prompt_count

TOGETHER = 5  # figures with intervals side by side in one table


def verdict(found: Comparison) -> Verdict:
    """In a sentence: who beats the base, and who earns most?"""
    gains = {g.line: found.difference(g.line) for g in found.trained if not found.is_base(g)}
    if not gains:
        return Verdict("Nothing to compare", "open", f"All runs are {_the(found.against)}.")
    if None in gains.values():
        said = "Nothing scores both the answers and what they are compared with: only texts differ."
        return Verdict("Not scored", "open", said)
    best = max(gains, key=lambda line: gains[line].mean)
    mean, interval = (text.replace("-", "−") for text in printed(gains[best]))
    total = rounded(TOTAL, found.value(best, TOTAL).mean)
    base = _the(found.against)
    earned = f"{best} earns {total}, {mean} against {base}"
    prompts = prompt_count(found.runs[0].evaluation)
    if prompts == 1:
        said = f"{earned}; of one prompt no interval can be given."
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
    sentence += " With so few prompts the intervals are too narrow." * (prompts < FEW)
    if gains[best].low > 0:
        return Verdict(f"Better than {base}", "better", sentence)
    if less == len(gains):
        return Verdict(f"Worse than {base}", "worse", sentence)
    return Verdict("No reliable difference", "open", sentence)


def about(found: Comparison) -> tuple[str, ...]:
    """What the figures are, in two or three sentences."""
    count = prompt_count(found.runs[0].evaluation)
    said = [
        f"Means over {count:,} test prompts [95% bootstrap interval over the prompts].",
        f"The difference to {_the(found.against)} is taken prompt by prompt before it is averaged.",
    ]
    if found.against == REFERENCE and len(found.references) > 1:
        said[1] = f"{said[1][:-1]}; each run's reference is its own."
    if found.has_spread:
        said.append(
            "A row of several seeds is the mean of their runs; its interval is still over the "
            "prompts, and how far the seeds lie apart is said as sd and range."
        )
    return tuple(said)


def _the(name: str) -> str:
    return f"the {name}" if name in (REFERENCE, DATA) else name


def printed(estimate: Estimate) -> tuple[str, str]:
    """A figure and its interval, rounded for reading; the interval is empty where there is none."""
    ends = (estimate.mean, estimate.low, estimate.high)
    if estimate.low is None:
        return rounded(estimate.metric, estimate.mean), ""
    digits = 1 if estimate.metric == "length" else _digits(max(map(abs, ends)))
    mean, low, high = (f"{x:{'+' if estimate.against else ''}.{digits}f}" for x in ends)
    return mean, f"[{low}, {high}]"


def rounded(metric: str, value: float) -> str:
    """A figure of that metric as text."""
    if metric == "flops":
        return f"{value:.2e}".replace("e+", "e")
    if metric in ("tokens", "seconds"):
        return f"{value:,.0f}"
    if metric == "step":
        return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    return f"{value:.1f}" if metric == "length" else f"{value:.{_digits(abs(value))}f}"


def in_parts(names: Sequence[str]) -> tuple[Sequence[str], ...]:
    """The names in their order, at most ``TOGETHER`` in a part: columns that fit a page."""
    return tuple(names[first : first + TOGETHER] for first in range(0, len(names), TOGETHER))


def set_name(name: str) -> str:
    """A test set as it is printed; prompts without a source have the empty name."""
    return name or "no source"


def _digits(largest: float) -> int:
    """Behind the point, so that a figure has four to five digits in all."""
    return next((3 - n for n, bound in enumerate((10, 100, 1000)) if largest < bound), 0)
