"""Figures of the experiments: collected values in, SVG text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.reports.compare.figures import Bar, Point, Series, curves, differences, frontier
from alol_jax.reports.figures import COLOURS, STYLE, new_figure, to_svg
from alol_jax.types import Interval
from benchmarks.evidence import paid, relabelled
from benchmarks.evidence.summaries import (
    BASES,
    Plain,
    ablation_gains,
    difference,
    explained,
    names_of,
    objective_of,
    over_seeds,
    pareto_front,
    share,
)
from benchmarks.evidence.value import RIDGE, Setting

KL = "KL to the reference on own answers (nats)"
NOISE = "% of training responses moved to other prompts"
STYLES = {name: number for number, name in enumerate(OBJECTIVES)}
"""Objective -> the series whose colour and marker it and its variants have in every figure."""


def kept_shares(groups: Mapping[str, Sequence[int]]) -> str:
    """The share of kept rows of each group, with a 95% interval by bootstrap over the rows."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(height=1.0 + 0.36 * len(groups))
        for place, (kept, rows) in enumerate(reversed(groups.values())):
            one = share(kept, rows)
            axes.barh(place, one.mean, color=COLOURS["kept"], height=0.6)
            axes.plot([one.low, one.high], [place, place], color=COLOURS["data"], lw=1.6)
            said = f"{one.mean:.0%} of {rows}"
            where = axes.get_yaxis_transform()
            axes.annotate(said, (1.02, place), xycoords=where, va="center", fontsize=9.5)
        axes.set_yticks(range(len(groups)), list(reversed(groups)))
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the training rows that are kept")
        axes.grid(axis="y", visible=False)
        return to_svg(figure, "share kept: " + ", ".join(groups))


def by_sum(found: Plain, component: str) -> str:
    """Policy − reference in a component, for each sum that an `a_lol` was paid."""
    bars = [
        Bar(one["sum"], difference(paid.gains(one, (component,))), (), place)
        for place, one in enumerate(found["sums"])
    ]
    return differences(bars, label=f"{component} of the answers, policy − reference")


def label_differences(found: Plain, measure: str) -> str:
    """Policy − reference in a measure, the mean over seeds; best first."""
    reference = np.array(found["reference"][measure])
    bars = []
    for name in names_of(found):
        runs = [run for run in found["runs"] if run["name"] == name]
        gains = np.array([run["measures"][measure] for run in runs]) - reference
        each = tuple(map(float, gains.mean(axis=1)))
        bars.append(Bar(name, difference(gains), each, _style(name)))
    bars.sort(key=lambda bar: -bar.difference.mean)
    return differences(bars, label=f"{measure}, policy − reference")


def read_blind(found: Plain, seeds: Sequence[Plain]) -> str:
    """Policy − reference in the reward of the labels that a reading gave; best first."""
    bars = []
    for name in relabelled.systems(found, seeds)[1:]:
        gains = relabelled.gains(seeds, name)
        each = tuple(map(float, gains.mean(axis=1)))
        bars.append(Bar(name, difference(gains), each, _style(name)))
    bars.sort(key=lambda bar: -bar.difference.mean)
    return differences(bars, label="reward of a blind reader's label, policy − reference")


def explained_by_setting(study: Plain) -> str:
    """What V explains of people's labels, for each setting of `value`."""
    bars, usual = [], Setting("")
    for one in study["settings"]:
        words = [one["features"], str(one["count"])]
        words += ["one label"] * (one["answers"] != usual.answers)
        words += [f"{one['epochs']} epochs"] * (one["epochs"] != usual.epochs)
        found, series = explained(np.array(one["errors"])), int(one["features"] == RIDGE)
        bars.append(Bar(", ".join(words), found, (), series))
    return differences(
        bars, label="share of the labels' variance explained, by features and prompts"
    )


def earned_by_samples(found: Plain) -> str:
    """Policy − reference, for each number of sampled answers that V is fitted to."""
    bars = []
    for place, one in enumerate(found["by_samples"]):
        gains = np.subtract([r["rewards"] for r in one["runs"]], one["reference"]["rewards"])
        each = tuple(map(float, gains.mean(axis=1)))
        name = f"{one['samples']} answer{'s' * (one['samples'] > 1)}"
        bars.append(Bar(name, difference(gains), each, place))
    return differences(bars, label="total reward, policy − reference")


def kept_by_noise(found: Plain) -> str:
    """The share of kept rows among moved and other rows, against the share that was moved."""
    seeds = sorted({level["seed"] for level in found["levels"]})
    series = []
    for group, name in (("moved", "moved rows"), ("others", "other rows")):
        runs = []
        for seed in seeds:
            levels = [one for one in found["levels"] if one["seed"] == seed and one[group][1]]
            x = np.array([100 * one["share"] for one in levels])
            runs.append((x, np.array([one[group][0] / one[group][1] for one in levels])))
        series.append(Series(name, tuple(run for run in runs if len(run[0]))))
    return curves(series, label="share kept", over=NOISE, marks=True)


def earned_by_noise(found: Plain, component: str) -> str:
    """A component of every system's reward on clean test prompts, against the share moved."""
    names = (*OBJECTIVES, "reference")
    points: dict[str, dict[int, list[tuple[float, float]]]] = {name: {} for name in names}
    for level in sorted(found["levels"], key=lambda level: level["share"]):
        if not level["runs"]:
            continue
        for one in ({"name": "reference", **level["reference"]}, *level["runs"]):
            place = (100 * level["share"], one["components"][component])
            points[one["name"]].setdefault(level["seed"], []).append(place)
    series = [
        Series(name, tuple(tuple(np.array(run).T) for run in runs.values()))
        for name, runs in points.items()
    ]
    label = "total reward" if component == "total" else component
    return curves(
        series, label=f"{label} of the answers to the test prompts", over=NOISE, marks=True
    )


def chosen_steps(found: Plain) -> str:
    """The reward of every objective and of best of n against the KL to the reference.

    Other learning rates and betas of an objective are joined with it.
    """
    points, best = [], found.get("best_of_n")
    for name in _on_the_dial(found):
        runs = [run for run in found["runs"] if run["name"] == name]
        each = tuple((run["kl"], float(np.mean(run["rewards"]))) for run in runs)
        kl, means = np.array(each).T
        ends = difference(np.array([run["rewards"] for run in runs]))
        middle = over_seeds(means) if len(runs) > 1 else None
        objective = objective_of(name)
        points.append(
            Point(objective, objective, float(kl.mean()), ends, middle, each, _style(name))
        )
    for rewards, kl in zip(best["rewards"], best["kl"], strict=True) if best else ():
        ends = difference(np.array([rewards]))
        points.append(Point("best of n", "best of n", kl, ends, None, (), None))
    start = float(np.mean(found["reference"]["rewards"])) if found["runs"] else None
    return frontier(points, start, label="total reward on the test prompts", over=KL)


def validation_looks(found: Plain) -> str:
    """The reward of every objective at every validation against its KL."""
    series = [Series(name, _looks(found, name)) for name in OBJECTIVES]
    return curves(series, label="mean validation reward", over=KL, marks=True, whole=False)


def frontiers(found: Plain) -> str:
    """The best rewards that an objective has at each KL: its looks with every rate or beta."""
    fronts: dict[str, list[np.ndarray]] = {name: [] for name in OBJECTIVES}
    for name in _on_the_dial(found):
        fronts[objective_of(name)].append(np.mean(_looks(found, name), axis=0).T)
    series = []
    for name, looks in fronts.items():
        several = len(looks) > 1
        runs = (tuple(pareto_front(np.concatenate(looks)).T),) if several else ()
        series.append(Series(name, runs))
    return curves(series, label="mean validation reward", over=KL, marks=True, whole=False)


def _looks(found: Plain, name: str) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """KL and mean reward of each validation, for each seed of a name."""
    runs = (np.array(run["looks"], float) for run in found["runs"] if run["name"] == name)
    return tuple((run[:, 2], run[:, 1]) for run in runs)


def _on_the_dial(found: Plain) -> list[str]:
    """The objectives, and their variants with another learning rate or beta."""
    return [name for name in names_of(found) if name not in BASES]


def _style(name: str) -> int:
    return STYLES[objective_of(name)]


def ablations(found: Plain) -> str:
    """Each ablation − its base, seed by seed: interquartile means of the differences."""
    bars = []
    for name, base, gains in ablation_gains(found):
        middle: Interval = over_seeds(gains)
        bars.append(Bar(f"{name} − {base}", middle, tuple(map(float, gains)), _style(name)))
    return differences(bars, label="total reward, interquartile mean of the differences by seed")
