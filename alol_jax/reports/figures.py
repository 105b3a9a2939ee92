"""The plots of the report: arrays in, SVG text out.

Only this module and ``compare.figures`` import matplotlib.

Each SVG is a fragment for an HTML page: no prolog, no fixed size, text as text. Axes and grid are
``currentColor`` and colours are CSS variables with a light-mode default, so that the page controls
light and dark mode. The palette is Okabe and Ito's, safe for colour-blind readers.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

INK = "#010201"
COLOURS = {
    "data": "#010202",
    "reference": "#010203",
    "policy": "#010204",
    "kept": "#010205",
    "dropped": "#010206",
    "value": "#010207",
    "series1": "#010208",
    "series2": "#010209",
    "series3": "#01020a",
    "series4": "#01020b",
    "series5": "#01020c",
    "series6": "#01020d",
}
"""Name -> the placeholder colour that matplotlib draws with; ``PAINT`` maps it to CSS."""

PAINT = {
    INK: "currentColor",
    COLOURS["data"]: "var(--data, #767b85)",
    COLOURS["reference"]: "var(--reference, #0072b2)",
    COLOURS["policy"]: "var(--policy, #d55e00)",
    COLOURS["kept"]: "var(--kept, #009e73)",
    COLOURS["dropped"]: "var(--dropped, #b4b8c0)",
    COLOURS["value"]: "var(--value, #a4508b)",
    COLOURS["series1"]: "var(--series1, #0072b2)",
    COLOURS["series2"]: "var(--series2, #d55e00)",
    COLOURS["series3"]: "var(--series3, #009e73)",
    COLOURS["series4"]: "var(--series4, #b0569a)",
    COLOURS["series5"]: "var(--series5, #cc8a00)",
    COLOURS["series6"]: "var(--series6, #3f9fd6)",
}

DASHES = {"reference": (0, (3.2, 1.2)), "policy": "solid"}

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.5,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "grid.alpha": 0.14,
    "grid.color": INK,
    "grid.linewidth": 0.7,
    "legend.borderaxespad": 0.0,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "legend.handlelength": 1.9,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "alol_jax",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.color": INK,
    "ytick.labelsize": 9.5,
}

WIDTH, HEIGHT = 6.0, 3.5  # inches of 72 SVG units; legible at widths of 360 px and above


def forest(
    names: Sequence[str], means: np.ndarray, lows: np.ndarray, highs: np.ndarray, *, label: str
) -> str:
    """Forest plot: means with intervals, one per line, around a line at 0; the last is bold."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height=1.1 + 0.42 * len(names))
        rows = np.arange(len(names))[::-1]
        last = len(names) - 1
        for i, row in enumerate(rows):
            bold = i == last
            colour = COLOURS["policy"] if bold else INK
            axes.plot([lows[i], highs[i]], [row, row], color=colour, lw=3.2 if bold else 1.8)
            axes.plot(means[i], row, "D" if bold else "o", color=colour, ms=7.5 if bold else 6)
            said = f"{means[i]:+.3f}  [{lows[i]:+.3f}, {highs[i]:+.3f}]".replace("-", "−")
            axes.annotate(
                said,
                (1.03, row),
                xycoords=axes.get_yaxis_transform(),
                va="center",
                fontsize=9.5,
                fontweight="bold" if bold else "normal",
            )
        axes.axvline(0, color=INK, lw=1.0, dashes=(4, 2))
        axes.set_yticks(rows, [shorten(name, 24) for name in names])
        axes.get_yticklabels()[last].set_fontweight("bold")
        axes.set_ylim(-0.6, last + 0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
        return to_svg(figure, "Paired differences with their intervals: " + ", ".join(names))


def distributions(systems: Sequence[tuple[str, np.ndarray]], *, label: str) -> str:
    """Histograms over common bins, as shares; a triangle marks each mean.

    The data is filled and the systems are outlines, so that they can be told apart without colour.

    Args:
        systems: (name, f32[n]) with names from ``COLOURS``.
        label: what the values are, with their unit.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height=HEIGHT)
        edges = _edges(np.concatenate([values for _, values in systems]), bins=18)
        for name, values in systems:
            share = np.histogram(values, edges)[0] / len(values)
            paint = COLOURS[name]
            if name not in DASHES:
                axes.stairs(share, edges, fill=True, color=paint, alpha=0.3, lw=0, label=name)
            else:
                axes.stairs(share, edges, color=paint, lw=2, ls=DASHES[name], label=name)
            place = axes.get_xaxis_transform()
            axes.plot(np.mean(values), 1.0, "v", color=paint, ms=8, clip_on=False, transform=place)
        axes.set_xlim(edges[0], edges[-1])
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set_ylabel("share of responses")
        axes.set_xlabel(label)
        _legend_above(axes)
        return to_svg(figure, f"Distribution of {label}")


def curve(
    steps: np.ndarray,
    values: np.ndarray,
    *,
    label: str,
    over: str,
    colour: str,
    chosen: int | None,
    symlog: bool = False,
) -> str:
    """One metric over the steps of a fit: values pale, running mean bold.

    Args:
        steps, values: i32[n] and f32[n], n ≥ 1; averaged to at most 500 points.
        label: the metric, with its unit; over: what a step is.
        colour: a name from ``COLOURS``.
        chosen: the step whose parameters were kept, which is marked; None for no mark.
        symlog: use a logarithmic y axis above 1.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height=HEIGHT)
        x, y = downsample(np.asarray(steps, float), np.asarray(values, float), most=500)
        window = max(1, len(x) // 25)
        paint = COLOURS[colour]
        if window > 1:
            axes.plot(x, y, color=paint, lw=0.8, alpha=0.35)
            half = (window - 1) / 2
            middle = x[int(np.floor(half)) : len(x) - int(np.ceil(half))]
            axes.plot(middle, np.convolve(y, np.ones(window) / window, "valid"), color=paint, lw=2)
        else:
            axes.plot(x, y, color=paint, marker="o", ms=3.5)
        if symlog:
            set_symlog(axes)
        _mark_step(axes, chosen)
        _label_steps(axes, label, over)
        return to_svg(figure, f"{label} over {over}s")


def validation(
    steps: np.ndarray, scores: np.ndarray, *, label: str, over: str, colour: str, chosen: int
) -> str:
    """Validation scores over the steps of a fit; the chosen step is marked and ringed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height=HEIGHT)
        paint = COLOURS[colour]
        axes.plot(steps, scores, color=paint, marker="o", ms=4.5)
        best = [score for step, score in zip(steps, scores, strict=True) if step == chosen]
        ring = [chosen] * len(best)
        axes.plot(ring, best, "o", ms=12, mfc="none", mec=paint, mew=1.8)
        _mark_step(axes, chosen)
        _label_steps(axes, label, over)
        return to_svg(figure, f"{label} over {over}s; {over} {chosen} was chosen")


def kept_and_dropped(values: np.ndarray, kept: np.ndarray, *, label: str) -> str:
    """Stacked histogram of f32[n] values, coloured by ``kept`` (bool[n])."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height=HEIGHT)
        edges = _edges(values, bins=40)
        counts = [np.histogram(values[chosen], edges)[0] for chosen in (kept, ~kept)]
        total = len(values)
        floors = (np.zeros_like(counts[0]), counts[0])
        for name, count, floor in zip(("kept", "dropped"), counts, floors, strict=True):
            said = f"{name}: {count.sum():,} of {total:,}"
            top, paint = floor + count, COLOURS[name]
            axes.stairs(top, edges, baseline=floor, fill=True, color=paint, lw=0, label=said)
        axes.set_xlim(edges[0], edges[-1])
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylabel("training rows")
        axes.set_xlabel(label)
        _legend_above(axes)
        return to_svg(figure, f"Histogram of the training rows, kept and dropped: {label}")


def transform(before: np.ndarray, after: np.ndarray, *, label: str) -> str:
    """What percentiles of the rewards, f64[n] rising, became: a dot each, joined by a line."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height=HEIGHT)
        axes.plot(before, after, color=COLOURS["value"], marker="o", ms=3.5, lw=1.0, alpha=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("reward in the data")
        axes.set_ylabel("reward trained on")
        return to_svg(figure, f"The reward trained on over the reward in the data: {label}")


def calibration(
    predicted: np.ndarray, observed: np.ndarray, error: np.ndarray, count: np.ndarray
) -> str:
    """Calibration plot: mean observed against mean predicted per bin, with counts below.

    Args:
        predicted, observed: f32[bins], the mean of each bin.
        error: f32[bins], half the length of the bar around ``observed``.
        count: i32[bins], rows per bin.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained", dpi=72)
        axes, below = figure.subplots(2, sharex=True, height_ratios=(3.4, 1))
        paint = COLOURS["value"]
        ends = [predicted.min(), predicted.max()]
        axes.plot(ends, ends, color=INK, lw=1.0, dashes=(4, 2), label="observed = predicted")
        axes.errorbar(
            predicted,
            observed,
            error,
            fmt="o",
            color=paint,
            ms=6.5,
            elinewidth=1.4,
            label="mean of a bin",
        )
        axes.set_ylabel("observed reward")
        _legend_above(axes)
        gaps = np.diff(predicted)
        width = 0.75 * gaps.min() if len(gaps) else 0.1
        below.bar(predicted, count, width=width, color=paint, alpha=0.55, linewidth=0)
        for x, n in zip(predicted, count, strict=True):
            below.annotate(f"{n}", (x, n), (0, 2), textcoords="offset points", ha="center", size=9)
        below.set_ylim(0, 1.35 * count.max())
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        below.set_ylabel("rows")
        below.set_xlabel("predicted reward V(x)")
        return to_svg(figure, "Calibration of the value head: predicted against observed reward")


def new_figure(*, height: float) -> tuple[Figure, Axes]:
    """A figure of the common width, ``height`` inches high; use it within ``STYLE``."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=72)
    return figure, figure.subplots()


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.05), ncols=3, columnspacing=1.6)


def _label_steps(axes: Axes, label: str, over: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(over)
    axes.set_ylabel(label)


def set_symlog(axes: Axes) -> None:
    """Make the y axis linear up to 1 and logarithmic above."""
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.5)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _mark_step(axes: Axes, chosen: int | None) -> None:
    if chosen is None:
        return
    axes.axvline(chosen, color=INK, lw=1.0, ls=(0, (1.5, 2)))
    axes.annotate(
        f"chosen: step {chosen:,}",
        (chosen, 1.03),
        xycoords=axes.get_xaxis_transform(),
        ha="center",
        fontsize=9.5,
    )


def _edges(values: np.ndarray, *, bins: int) -> np.ndarray:
    """Edges of about ``bins`` equal bins over the values; 0 is an edge, so no bar straddles it."""
    low, high = float(values.min()), float(values.max())
    width = (high - low) / bins if high > low else 1.0
    first, last = np.floor(low / width), np.floor(high / width) + 1
    return np.arange(first, last + 1) * width


def downsample(x: np.ndarray, y: np.ndarray, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Average consecutive points so that at most ``most`` are left."""
    size = -(-len(x) // most)
    starts = np.arange(0, len(x), size)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def shorten(text: str, most: int) -> str:
    """Cut a name to at most ``most`` characters for a tick label."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _percent(share: float, _: int | None) -> str:
    return f"{100 * share:.3g}%"


def to_svg(figure: Figure, description: str) -> str:
    """The figure as an HTML fragment: CSS colours, sized by its container, with unique ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    inner = text[text.index(">") + 1 :]
    for placeholder, css in PAINT.items():
        inner = inner.replace(placeholder, css)
    inner = re.sub(
        r'\s+id="(?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib)[^"]*"', "", inner
    )
    mark = f"f{zlib.crc32(inner.encode()):08x}-"
    inner = re.sub(r'\bid="', f'id="{mark}', inner)
    inner = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{mark}", inner)
    width, height = (72 * inches for inches in figure.get_size_inches())
    said = html.escape(description, quote=True)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{said}" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{inner}'
    )
