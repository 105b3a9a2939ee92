"""Tables and intervals as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from alol_jax.reports.results import signed
from alol_jax.types import Interval


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table; so many first columns are text, the others are numbers."""
    lines = [heads, [*["---"] * texts, *["---:"] * (len(heads) - texts)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def titled(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1
) -> str:
    """A `table` below a line that says what it shows."""
    return f"{title}:\n\n{table(heads, rows, texts=texts)}"


def plain(one: Interval) -> str:
    """A mean with its interval, if there is one."""
    return f"{one.mean:.3f}" + (
        f" [{one.low:.3f}, {one.high:.3f}]" if math.isfinite(one.low) else ""
    )


def with_range(values: Sequence[float]) -> str:
    """The mean, with the least and the greatest value where there are several."""
    mean = f"{sum(values) / len(values):.3f}"
    return mean + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def gain(one: Interval) -> str:
    """A difference with its interval, if there is one."""
    ends = f" [{signed(one.low, 3)}, {signed(one.high, 3)}]" if math.isfinite(one.low) else ""
    return signed(one.mean, 3) + ends


def percent(part: float | None) -> str:
    """A share of the variance; where nothing varies there is none."""
    return "–" if part is None else f"{part:.1%}"


def percents(part: Interval) -> str:
    """A share of the variance with its interval; where nothing varies there is none."""
    if not math.isfinite(part.mean):
        return "–"
    return f"{part.mean:.1%} [{part.low:.1%}, {part.high:.1%}]"


def one_line(text: str) -> str:
    """One line, without the signs of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
