"""The differences of all groups to the base, as a forest plot."""

from __future__ import annotations

from alol_jax.reports.compare.figures import Bar, differences
from alol_jax.reports.compare.table import Comparison
from alol_jax.reports.page import Figure, Section
from alol_jax.types import Interval


def against_section(found: Comparison) -> Section:
    """Forest plot of the differences, best first."""
    bars = _bars(found)
    drawn = []
    if bars:
        svg = differences(bars, label=f"total reward, difference to {found.against}")
        caption = (
            "Paired by prompt, with 95% bootstrap intervals, best first. An interval that crosses "
            "the dashed line is no reliable difference."
        ) + " Ticks below a line are its seeds." * found.has_spread
        drawn.append(Figure(f"Paired difference to {found.against}", svg, caption))
    text = (
        "The intervals are not corrected for multiple comparisons: of twenty rows without any "
        "difference, one is expected to show one."
    )
    if not bars:
        text = "No differences in reward: no scorer judges the generated answers."
    return Section("against", f"Against {found.against}", (text,), figures=tuple(drawn))


def _bars(found: Comparison) -> list[Bar]:
    series = {group.name: number for number, group in enumerate(found.trained)}
    bars = []
    for group in found.groups:
        change = found.difference(group.row_name)
        if change is not None and not found.is_base(group):
            each = tuple(found.difference(row.name).mean for row in group.rows)
            ends = Interval(change.mean, change.low, change.high)
            bars.append(Bar(group.row_name, ends, each, series.get(group.name)))
    return sorted(bars, key=lambda bar: -bar.difference.mean)
