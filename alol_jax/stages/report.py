"""report: the results of a run as one HTML page, JSON and CSV.

``report.html`` needs no network; ``results.json`` and ``results.csv`` have the same numbers in full
precision.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.reports import sections, sections_fit, sections_rewards
from alol_jax.reports.page import Page, Section, render
from alol_jax.reports.results import (
    Measure,
    explained_variance,
    measures,
    prompt_count,
    to_csv,
    verdict,
)
from alol_jax.types import (
    Evaluation,
    Policy,
    Report,
    RunSummary,
    ScoredSplits,
    StageContext,
    TrainingTable,
    Value,
)


def report(
    options: ConfigDict,
    scored: ScoredSplits,
    reference: Policy,
    value: Value | None,
    table: TrainingTable,
    policy: Policy,
    evaluation: Evaluation,
    summary: RunSummary,
    *,
    context: StageContext,
) -> Report:
    """Write the report into the stage's folder.

    Args:
        options: ``title`` of the page and ``examples``, the number of prompts to show.
        value: None if training does not read the advantage.
        table: its ``kept`` counts only if ``summary.drops``.

    Raises:
        ValueError: a number is not finite, or reference and policy answered different prompts.
    """
    if not summary.drops:
        every = np.ones(len(table.rows), bool)
        table = dataclasses.replace(table, rows=table.rows.replace(kept=every))
    found = measures(evaluation)
    judged = verdict(evaluation)
    parts = (
        sections.results(evaluation, found),
        sections_rewards.by_stored_rewards(evaluation),
        sections_rewards.judge(evaluation),
        sections.comparison(evaluation, found),
        sections_fit.training(policy, summary, evaluation.agreement),
        sections_fit.weights(policy, summary),
        sections.advantages(scored, table, value, summary),
        sections.extremes(table, value),
        sections.value_head(value, summary, evaluation.agreement),
        sections.side_by_side(evaluation, options.examples),
        sections_fit.reference_fit(reference),
        Section("config", "Config", folded=summary.config_json),
        sections.versions(summary),
    )
    page = Page(
        options.title,
        judged.badge,
        judged.tone,
        judged.sentence,
        _facts(table, value, policy, evaluation, summary),
        _run_line(summary),
        tuple(part for part in parts if part is not None),
    )
    files = {
        "report.html": render(page),
        "results.json": _to_json(page, found, table, value, policy, evaluation, summary),
        "results.csv": to_csv(found),
    }
    for name, text in files.items():
        paths.write_text(context.folder / name, text)
    return Report(files=tuple(files))


def _run_line(summary: RunSummary) -> tuple[tuple[str, str], ...]:
    """What was trained, for the line below the title."""
    tuned = ((name, f"{number:g}") for name, number in summary.hyper_parameters)
    names = (("objective", summary.objective), *tuned)
    return (*names, ("task", summary.task), ("model", summary.model))


def _facts(
    table: TrainingTable,
    value: Value | None,
    policy: Policy,
    evaluation: Evaluation,
    summary: RunSummary,
) -> tuple[tuple[str, str], ...]:
    """The tiles below the verdict."""
    kept, rows = int(table.rows["kept"].sum()), len(table.rows)
    step = sections_fit.step_name(summary)
    facts = [("test prompts", f"{prompt_count(evaluation):,}")]
    if step == sections_fit.OPTIMIZER_STEP:
        facts.append(("training rows kept", f"{kept:,} of {rows:,}"))
    facts.append((f"chosen {step}", f"{policy.step:,}"))
    if value is not None:
        gained = explained_variance(value.audit)
        said = "–" if gained is None else f"{100 * gained:.1f}%".replace("-", "−")
        facts.append(("variance the value head explains", said))
    return tuple(facts)


def _to_json(
    page: Page,
    found: tuple[Measure, ...],
    table: TrainingTable,
    value: Value | None,
    policy: Policy,
    evaluation: Evaluation,
    summary: RunSummary,
) -> str:
    """The page's numbers as JSON; ``measures`` has the rows of ``results.csv``."""
    audit = None
    if value is not None:
        audit = {
            "mse": value.audit.mse,
            "mse_of_mean": value.audit.mse_of_mean,
            "mse_of_length": value.audit.mse_of_length,
            "explained_variance": explained_variance(value.audit),
            "epochs": value.audit.epochs,
        }
    agreement = evaluation.agreement
    numbers = {
        "title": page.title,
        "verdict": page.verdict,
        "objective": summary.objective,
        "hyper_parameters": {name: f"{value:g}" for name, value in summary.hyper_parameters},
        "task": summary.task,
        "model": summary.model,
        "chosen_step": policy.step,
        "chosen_by": list(sections_fit.chosen_by(policy)),
        "scorer_agreement": agreement and dataclasses.asdict(agreement),
        "training_rows": len(table.rows),
        "training_rows_kept": int(table.rows["kept"].sum()),
        "value_head": audit,
        "measures": [measure._asdict() for measure in found],
        "versions": dict(summary.versions),
        "commits": dict(summary.commits),
    }
    return json.dumps(numbers, indent=2, allow_nan=False) + "\n"
