"""Plots of several runs: arrays in, SVG text out, in the style of ``reports.figures``.

Every series has a colour, a marker and a line style: six colours, then the same six hollow and
dashed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from alol_jax.reports.figures import (
    COLOURS,
    HEIGHT,
    INK,
    STYLE,
    downsample,
    new_figure,
    set_symlog,
    shorten,
    to_svg,
)
from alol_jax.types import Interval

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("solid", (0, (3.5, 1.4)), (0, (1.2, 1.2)))
LEGEND = 64  # longest name in a legend, in characters
ROUND = (1, 2, 5, 10)  # ticks at multiples of these


class Series(NamedTuple):
    """One group of runs: for each run its points x and y, f64[n]."""

    name: str
    runs: tuple[tuple[np.ndarray, np.ndarray], ...]


class Bar(NamedTuple):
    """One line of a forest plot; ``series`` is None for a row without curves."""

    name: str
    difference: Interval  # without an interval, its ends are NaN
    seeds: tuple[float, ...]  # the mean of each seed; drawn if there are two or more
    series: int | None


class Point(NamedTuple):
    """One group in the plot of reward (y) against KL (x), and its seeds as (x, y).

    Points of one name and series are one entry of the legend.
    """

    name: str
    family: str  # points of one family are joined, by increasing x
    x: float
    y: Interval  # the mean, over prompts
    middle: Interval | None  # the interquartile mean, over seeds; None with one seed
    seeds: tuple[tuple[float, float], ...]
    series: int | None  # None: in the colour of the text


def is_hollow(series: int) -> bool:
    """Is the series drawn like the one six before it, but hollow and dashed?"""
    return series // len(MARKERS) % 2 == 1


def paint_of(series: int) -> str:
    """The series' colour, as a name in ``COLOURS``."""
    return f"series{series % len(MARKERS) + 1}"


def differences(bars: Sequence[Bar], *, label: str) -> str:
    """Forest plot of paired differences with intervals, in the order given; seeds are ticks."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height=1.0 + 0.36 * len(bars))
        for row, bar in zip(range(len(bars))[::-1], bars, strict=True):
            ends, style = bar.difference, _marker(bar.series)
            axes.plot([ends.low, ends.high], [row, row], color=style["color"], lw=2.2)
            below = [row - 0.28] * len(bar.seeds)
            if len(bar.seeds) > 1:
                axes.plot(bar.seeds, below, "|", color=style["color"], ms=6, mew=1.3)
            axes.plot(ends.mean, row, ms=6.5, **style)
            known = f"  [{ends.low:+.3f}, {ends.high:+.3f}]" if math.isfinite(ends.low) else ""
            said = f"{ends.mean:+.3f}{known}".replace("-", "−")
            where = axes.get_yaxis_transform()
            axes.annotate(said, (1.03, row), xycoords=where, va="center", fontsize=9.5)
        axes.axvline(0, color=INK, lw=1.0, dashes=(4, 2))
        axes.set_yticks(range(len(bars))[::-1], [shorten(bar.name, 30) for bar in bars])
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
        axes.set_xlabel(label)
        return to_svg(figure, f"{label}: " + ", ".join(bar.name for bar in bars))


def curves(
    series: Sequence[Series],
    *,
    label: str,
    over: str,
    marks: bool,
    symlog: bool = False,
    whole: bool = True,
) -> str:
    """Curves of many runs: each run thin, the mean of a group bold.

    The mean is taken point by point. If the runs of a group have different numbers of points, only
    the runs are drawn.

    Args:
        series: the position of each determines its style.
        label, over: what y and x are, with their units.
        marks: mark every point.
        symlog: use a logarithmic y axis above 1.
        whole: x are whole numbers, of steps or tokens.
    """
    with matplotlib.rc_context(STYLE):
        names = [one.name for one in series if one.runs]
        figure, axes = new_figure(height=HEIGHT + 0.5 + 0.24 * _legend_rows(names))
        for number, one in enumerate(series):
            _draw_series(axes, number, one, marks)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=ROUND))
        if whole:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
        if symlog:
            set_symlog(axes)
        axes.set_xlabel(over)
        axes.set_ylabel(label)
        _legend(axes, names)
        return to_svg(figure, f"{label} over {over}: " + ", ".join(names))


def _draw_series(axes: Axes, number: int, series: Series, marks: bool) -> None:
    if not series.runs:
        return
    marker = _marker(number)
    line = {"color": marker["color"], "ls": DASHES[number // len(MARKERS) % len(DASHES)]}
    dots = dict(marker, ms=5) if marks else {}
    if len({len(x) for x, _ in series.runs}) == 1 < len(series.runs):
        for x, y in series.runs:
            axes.plot(*_smooth(x, y), color=line["color"], lw=0.7, alpha=0.35)
        mean = np.mean(series.runs, axis=0)
        axes.plot(*_smooth(*mean), **(dots | line), lw=1.9, label=shorten(series.name, LEGEND))
        return
    for place, (x, y) in enumerate(series.runs):
        said = shorten(series.name, LEGEND) if place == 0 else None
        axes.plot(*_smooth(x, y), **(dots | line), lw=1.6, label=said)


def frontier(points: Sequence[Point], reference: float | None, *, label: str, over: str) -> str:
    """Reward of each group against its KL to the reference.

    Thin vertical lines are the intervals over prompts, thick ones those over seeds.

    Args:
        reference: the reward of the reference, drawn at x = 0; None if there are several.
    """
    with matplotlib.rc_context(STYLE):
        firsts = {point.name: point for point in reversed(points)}
        names = list(dict.fromkeys(point.name for point in points))
        figure, axes = new_figure(height=HEIGHT + 0.5 + 0.24 * _legend_rows(names))
        for family in dict.fromkeys(point.family for point in points):
            line = sorted((p.x, p.y.mean) for p in points if p.family == family)
            if len(line) > 1:
                axes.plot(*zip(*line, strict=True), color=INK, lw=0.8, alpha=0.4)
        for point in points:
            style = _marker(point.series)
            both, color = [point.x] * 2, style["color"]
            axes.plot(both, [point.y.low, point.y.high], color=color, lw=1.0)
            if point.middle is not None:
                ends = [point.middle.low, point.middle.high]
                axes.plot(both, ends, color=color, lw=4.5, alpha=0.4, solid_capstyle="butt")
            if len(point.seeds) > 1:
                x, y = zip(*point.seeds, strict=True)
                axes.plot(x, y, ms=3.5, **(style | {"alpha": 0.45}))
            entry = shorten(point.name, LEGEND) if firsts[point.name] is point else None
            axes.plot(point.x, point.y.mean, ms=8.5, label=entry, **style)
        if reference is not None:
            axes.plot(0, reference, "*", color=INK, ms=11)
            place = {"xytext": (8, -4), "textcoords": "offset points", "fontsize": 9.5}
            axes.annotate("reference", (0, reference), **place)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
        axes.set_xlabel(over)
        axes.set_ylabel(label)
        _legend(axes, names)
        return to_svg(figure, f"{label} against {over}: " + ", ".join(names))


def _marker(series: int | None) -> dict[str, Any]:
    if series is None:
        return {"marker": "o", "color": INK, "ls": "none"}
    paint = COLOURS[paint_of(series)]
    found = {"marker": MARKERS[series % len(MARKERS)], "color": paint, "ls": "none"}
    return found | ({"mfc": "none", "mew": 1.5} if is_hollow(series) else {})


def _smooth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average a long curve to at most 40 points."""
    return downsample(np.asarray(x, float), np.asarray(y, float), most=40)


def _columns(names: Sequence[str]) -> int:
    longest = max(map(len, names), default=0)
    return 3 if longest <= 15 else 2 if longest <= 24 else 1


def _legend_rows(names: Sequence[str]) -> int:
    return -(-len(names) // _columns(names))


def _legend(axes: Axes, names: Sequence[str]) -> None:
    if not names:
        return
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.03),
        ncols=_columns(names),
        columnspacing=1.4,
        handlelength=2.8,
        fontsize=9.5,
    )
