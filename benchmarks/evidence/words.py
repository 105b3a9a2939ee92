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
    if part is None or not math.isfinite(part):
        return "–"
    return f"{round(100 * part, 1) + 0.0:.1f}%".replace("-", "−")  # + 0.0: not −0.0


def percents(part: Interval) -> str:
    """A share of the variance with its interval; where nothing varies there is none."""
    mean, low, high = map(percent, (part.mean, part.low, part.high))
    return f"{mean} [{low}, {high}]" if math.isfinite(part.mean) else mean


class Seeds:
    """How many seeds the cells of a table have: most in its title, other numbers in the cells.

    Args:
        counts: of the cells.
    """

    def __init__(self, counts: Iterable[int]) -> None:
        kinds = set(counts) - {0}
        self.most, self.differ = max(kinds, default=0), len(kinds) > 1

    @property
    def in_words(self) -> str:
        """The largest number of seeds, for the title."""
        return _seeds(self.most) + ", or as many as a cell says" * self.differ

    def beside(self, count: int) -> str:
        """What stands beside a cell: nothing, or its own number."""
        return f" ({_seeds(count)})" if count != self.most else ""


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def one_line(text: str) -> str:
    """One line, without the signs of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
