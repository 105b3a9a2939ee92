"""Stage 9, report: everything of a run that a reader should see, as one page and two tables.

``report.html`` opens without a network; ``results.json`` and ``results.csv`` carry the page's
figures in full precision.
"""

from __future__ import annotations

import json

from ml_collections import ConfigDict

from alol_jax.reports import sections, sections_fit
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
    """Writes the report into the stage's folder.

    Args:
        options: ``title`` of the page and ``examples``, how many prompts are shown side by side.
        value: None where the objective does not read the advantage.

    Raises:
        ValueError: a figure is not finite, or reference and policy answered different prompts.
    """
    found = measures(evaluation)
    judged = verdict(evaluation)
    page = Page(
        options.title,
        judged.badge,
        judged.tone,
        judged.sentence,
        _facts(table, value, policy, evaluation, summary),
        _about(summary),
        (
            sections.results(evaluation, found),
            sections.comparison(evaluation, found),
            sections_fit.training(policy, summary),
            sections_fit.weights(policy, summary),
            sections.advantages(scored, table, value, summary),
            sections.extremes(table, value),
            sections.value_head(value, summary),
            sections.side_by_side(evaluation, options.examples),
            sections_fit.reference_fit(reference),
            Section("config", "Config", folded=summary.config_json),
            sections.versions(summary),
        ),
    )
    files = {
        "report.html": render(page),
        "results.json": _to_json(page, found, table, value, policy, summary),
        "results.csv": to_csv(found),
    }
    for name, text in files.items():
        (context.folder / name).write_text(text, encoding="utf-8")
    return Report(files=tuple(files))


def _about(summary: RunSummary) -> tuple[tuple[str, str], ...]:
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
    kept, rows = sum(row.kept for row in table.rows), len(table.rows)
    over = sections_fit.unit(summary)
    facts = [("test prompts", f"{prompt_count(evaluation):,}")]
    if over == sections_fit.UPDATE:
        facts.append(("training rows kept", f"{kept:,} of {rows:,}"))
    facts.append((f"chosen {over}", f"{policy.step:,}"))
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
    summary: RunSummary,
) -> str:
    """The page's figures for a program; ``measures`` are those of ``results.csv``."""
    audit = None
    if value is not None:
        audit = {
            "mse": value.audit.mse,
            "mse_of_mean": value.audit.mse_of_mean,
            "mse_of_length": value.audit.mse_of_length,
            "explained_variance": explained_variance(value.audit),
            "epochs": value.audit.epochs,
        }
    numbers = {
        "title": page.title,
        "verdict": page.verdict,
        "objective": summary.objective,
        "hyper_parameters": {name: f"{value:g}" for name, value in summary.hyper_parameters},
        "task": summary.task,
        "model": summary.model,
        "chosen_step": policy.step,
        "training_rows": len(table.rows),
        "training_rows_kept": sum(row.kept for row in table.rows),
        "value_head": audit,
        "measures": [measure._asdict() for measure in found],
        "versions": dict(summary.versions),
    }
    return json.dumps(numbers, indent=2, allow_nan=False) + "\n"
