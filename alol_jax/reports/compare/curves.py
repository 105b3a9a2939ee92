"""The curves of all runs in one plot: validation scores and logged training metrics."""

from __future__ import annotations

import numpy as np

from alol_jax.reports.compare.figures import Series, curves
from alol_jax.reports.compare.rows import RunResult
from alol_jax.reports.compare.table import Comparison
from alol_jax.reports.page import Figure, Section
from alol_jax.reports.sections_fit import SYMLOG, TRAINING, WEIGHTS
from alol_jax.training.metrics import METRICS

SHARED = {name: label for name, label in (TRAINING | WEIGHTS).items() if name != "loss"}
"""Logged metric -> its axis label; not the loss, which two objectives cannot share."""


def curve_section(found: Comparison) -> Section:
    """Validation scores over steps and tokens, then every metric that two or more runs logged."""
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
            svg = curves(
                series, label=label, over="optimizer step", marks=False, symlog=name in SYMLOG
            )
            caption = f"{METRICS[name]} Averaged over groups of steps."
            title = label.split(" (")[0]
            drawn.append(Figure(title[0].upper() + title[1:], svg, caption))
    text = () if drawn else ("No metric was logged by more than one run.",)
    return Section("curves", "Curves of all runs", text, figures=tuple(drawn))


def _logged(run: RunResult, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The optimizer steps and the values of a logged metric."""
    for curve in run.fit.curves:
        if curve.name == name:
            return run.updates * np.array(curve.steps, float), np.array(curve.values, float)
    return np.zeros(0), np.zeros(0)


def _validations(found: Comparison) -> list[Figure]:
    """One figure per metric over steps, and one over tokens if all runs counted them."""
    fits = [run.fit for run in found.runs]
    drawn = []
    for metric in dict.fromkeys(one.metric for fit in fits for one in fit.validations):
        caption = "On validation prompts; larger is better. Thin: seeds; bold: their mean."
        series = _validation_series(found, metric, tokens=False)
        svg = curves(series, label=metric, over="optimizer step", marks=True)
        drawn.append(Figure("Validation by steps", svg, caption))
        if all(fit.cost.tokens and fit.validations[-1].step for fit in fits if fit.validations):
            series = _validation_series(found, metric, tokens=True)
            svg = curves(series, label=metric, over="trained tokens", marks=True)
            caption = "The same by tokens trained on, assuming equally many per step."
            drawn.append(Figure("Validation by tokens", svg, caption))
    return drawn


def _validation_series(found: Comparison, metric: str, *, tokens: bool) -> tuple[Series, ...]:
    """The validation scores of each run, over optimizer steps or over tokens trained on."""
    series = []
    for group in found.trained:
        runs = []
        for run in (row.run for row in group.rows):
            points = [one for one in run.fit.validations if one.metric == metric]
            if points:
                scale = run.updates
                if tokens:
                    scale = run.fit.cost.tokens / run.fit.validations[-1].step
                steps = np.array([one.step for one in points]) * scale
                runs.append((steps, np.array([one.score for one in points])))
        series.append(Series(group.name, tuple(runs)))
    return tuple(series)
