"""The curves of all runs in one plot: looks at the validation set, and what training logged."""

from __future__ import annotations

import numpy as np

from alol_jax.reports.compare.figures import Series, curves
from alol_jax.reports.compare.rows import RunResult
from alol_jax.reports.compare.table import Comparison
from alol_jax.reports.page import Figure, Section
from alol_jax.reports.sections_fit import TRAINING, WEIGHTS, WIDE
from alol_jax.training.metrics import METRICS

SHARED = {name: label for name, label in (TRAINING | WEIGHTS).items() if name != "loss"}
"""Logged metric -> its axis; the losses of two objectives are two different things."""


def curve_section(found: Comparison) -> Section:
    """The validation scores over steps and over tokens, then the metrics that two runs logged."""
    drawn = _validations(found)
    for name, label in SHARED.items():
        series = tuple(
            Series(group.name, tuple(_logged(row.run, name) for row in group.rows))
            for group in found.trained
        )
        series = tuple(
            one._replace(runs=tuple(run for run in one.runs if len(run[0]))) for one in series
        )
        if sum(len(one.runs) for one in series) > 1:
            svg = curves(series, label=label, over="optimizer step", marks=False, wide=name in WIDE)
            caption = f"{METRICS[name]} Means of groups of steps."
            title = label.split(" (")[0]
            drawn.append(Figure(title[0].upper() + title[1:], svg, caption))
    text = () if drawn else ("The runs logged nothing that several of them share.",)
    return Section("curves", "Curves of all runs", text, figures=tuple(drawn))


def _logged(run: RunResult, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The optimizer steps, and the values logged there."""
    for curve in run.fit.curves:
        if curve.name == name:
            return run.updates * np.array(curve.steps, float), np.array(curve.values, float)
    return np.zeros(0), np.zeros(0)


def _validations(found: Comparison) -> list[Figure]:
    """One figure per metric, and one over the tokens where all runs counted them."""
    fits = [run.fit for run in found.runs]
    drawn = []
    for metric in dict.fromkeys(look.metric for fit in fits for look in fit.validations):
        caption = "On validation prompts; larger is better. Thin: the seeds; bold: their mean."
        svg = curves(
            _looks(found, metric, tokens=False), label=metric, over="optimizer step", marks=True
        )
        drawn.append(Figure("Validation by steps", svg, caption))
        if all(fit.cost.tokens and fit.validations[-1].step for fit in fits if fit.validations):
            svg = curves(
                _looks(found, metric, tokens=True), label=metric, over="trained tokens", marks=True
            )
            caption = "The same by the tokens trained on, as if every step had equally many."
            drawn.append(Figure("Validation by tokens", svg, caption))
    return drawn


def _looks(found: Comparison, metric: str, *, tokens: bool) -> tuple[Series, ...]:
    """Of each run the steps, or the tokens trained on until then, and the scores."""
    series = []
    for group in found.trained:
        runs = []
        for run in (row.run for row in group.rows):
            looks = [look for look in run.fit.validations if look.metric == metric]
            if looks:
                scale = run.updates
                if tokens:
                    scale = run.fit.cost.tokens / run.fit.validations[-1].step
                steps = np.array([look.step for look in looks]) * scale
                runs.append((steps, np.array([look.score for look in looks])))
        series.append(Series(group.name, tuple(runs)))
    return tuple(series)
