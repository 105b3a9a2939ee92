"""The sections of the report: a run's results in; text, tables and figures out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alol_jax.objectives.registry import get_objective
from alol_jax.reports import figures
from alol_jax.reports.page import (
    Answer,
    Cell,
    Column,
    Comparison,
    Figure,
    Row,
    Section,
    Table,
    shorten,
    shorten_start,
)
from alol_jax.reports.results import (
    DIFFERENCE,
    EVERY,
    TOTAL,
    Measure,
    calibration_bins,
    digits_of,
    explained_variance,
    in_set,
    metric_names,
    prompt_count,
    reward_differences,
    sample_pairs,
)
from alol_jax.reports.sections_rewards import transform_figures
from alol_jax.reports.statistics import signed
from alol_jax.reports.stored_rewards import rests_on
from alol_jax.reports.text_measures import explained
from alol_jax.tables.table import Table as Rows
from alol_jax.types import (
    Agreement,
    Annotated,
    Evaluation,
    RunSummary,
    Scored,
    ScoredSplits,
    TrainingTable,
    Value,
)

TRAINED_ON = "What the policy was trained on"
EXTREMES = 10  # rows shown at each end of the advantage
BINS = 10  # bins of the calibration plot


def results(evaluation: Evaluation, found: Sequence[Measure]) -> Section:
    """The result table: metrics × systems with intervals; the last column is the difference."""
    at = in_set(found, EVERY)
    systems = [system.name for system in evaluation.systems]
    columns = [Column("metric", False), *(Column(name, True, name) for name in systems)]
    columns.append(Column("policy − reference", True))
    rows = []
    for metric in metric_names(evaluation):
        cells = [_measure(at[name, metric]) for name in systems]
        change = at.get((DIFFERENCE, metric))
        last = Cell("") if change is None else _measure(change)
        rows.append(Row((Cell(metric), *cells, last), strong=metric == TOTAL))
    text = [
        f"Means over {prompt_count(evaluation):,} test prompts; in brackets the 95% bootstrap "
        "interval. The difference is taken prompt by prompt before it is averaged. Length is in "
        "words; distinct-n is the share of different n-grams over all answers of a system."
    ]
    if any(system.reward is None for system in evaluation.systems):
        text.append("– means that no scorer judges these answers.")
    text += rests_on(evaluation.agreement)
    if evaluation.measure_names:
        text.append(explained(evaluation.measure_names))
    if any(None in system.measures for system in evaluation.systems):
        text.append("A measure against the data's responses has no value for these themselves (–).")
    if (kl := evaluation.kl) is not None:
        text.append(
            f"Along its own answers the policy is {kl.mean:.2f} nats from the reference "
            f"[{kl.low:.2f}, {kl.high:.2f}]: the KL divergence of every token's distribution, "
            "summed over an answer."
        )
    tables = [Table("", tuple(columns), tuple(rows))]
    if len(evaluation.sets) > 1:
        tables.append(_by_set(evaluation, found))
        if any(one.prompts == 1 for one in evaluation.sets):
            text.append("A test set of one prompt has no interval.")
    return Section("results", "Results", tuple(text), tables=tuple(tables))


def _by_set(evaluation: Evaluation, found: Sequence[Measure]) -> Table:
    """The total reward on the test prompts of each source."""
    names = [system.name for system in evaluation.systems]
    columns = [Column("test set", False), Column("prompts", True)]
    columns += [Column(name, True, name) for name in names] + [Column("policy − reference", True)]
    rows = []
    for one in evaluation.sets:
        at = in_set(found, one.name)
        change = at.get((DIFFERENCE, TOTAL))
        cells = [_measure(at[name, TOTAL]) for name in names]
        cells.append(Cell("") if change is None else _measure(change))
        if one.prompts == 1:
            cells = [cell._replace(interval="") for cell in cells]
        rows.append(Row((Cell(one.name), Cell(f"{one.prompts:,}", exact=one.prompts), *cells)))
    return Table("Total reward by test set", tuple(columns), tuple(rows))


def comparison(evaluation: Evaluation, found: Sequence[Measure]) -> Section:
    """Forest plot of the paired differences, and histograms of total and components."""
    title = "Policy against reference"
    drawn = []
    rows = reward_differences(evaluation, found)
    if rows:
        columns = zip(*((m.metric, m.mean, m.low, m.high) for m in rows), strict=True)
        svg = figures.forest(*columns, label="difference in reward")
        caption = (
            "Mean paired difference with its 95% bootstrap interval. Right of the dashed line the "
            "policy earns more; an interval that crosses the line is no reliable difference."
        )
        drawn.append(Figure("Paired difference, policy − reference", svg, caption))
    text = rests_on(evaluation.agreement)
    if not rows:
        text = ("No differences in reward: no scorer judges the generated answers.",)
    return Section("comparison", title, text, figures=(*drawn, *_distributions(evaluation)))


def _distributions(evaluation: Evaluation) -> list[Figure]:
    answers = {
        "data": evaluation.data,
        "reference": evaluation.reference,
        "policy": evaluation.policy,
    }
    scored = {s.name: answers[s.name] for s in evaluation.systems if s.reward is not None}
    if not scored:
        return []
    caption = "Share of responses per bin; a triangle marks each mean."
    totals = [(name, rows["reward"]) for name, rows in scored.items()]
    svg = figures.distributions(totals, label="total reward")
    drawn = [Figure("Total reward", svg, caption)]
    for i, part in enumerate(evaluation.component_names):
        parts = [(name, rows["components"].matrix[:, i]) for name, rows in scored.items()]
        label = f"{part}, unweighted"
        drawn.append(Figure(part, figures.distributions(parts, label=label), caption))
    return drawn


def advantages(
    scored: ScoredSplits, table: TrainingTable, value: Value | None, summary: RunSummary
) -> Section:
    """Which training rows were kept, by advantage and source; for PPO, the prompts used."""
    rows = table.rows
    if get_objective(summary.objective).online:
        prompts = len(rows["example_id"].distinct())
        said = (
            f"Of the {len(scored.train):,} training rows only the {prompts:,} different prompts "
            "were used: the policy was trained on its own answers to them. "
            f"{len(scored.validation):,} validation and {len(scored.test):,} test rows were scored."
        )
        return Section("advantages", TRAINED_ON, (said,), tuple(scored.notes))
    kept = rows["kept"]
    text = [
        f"{len(scored.train):,} training, {len(scored.validation):,} validation and "
        f"{len(scored.test):,} test rows were scored. Of {len(rows):,} rows offered to the policy "
        f"{kept.sum():,} were kept and {(~kept).sum():,} dropped."
    ]
    drawn = []
    if value is None:
        text.append(
            f"The objective {summary.objective} does not read the advantage, so no value head was "
            "fitted and no row was dropped for its advantage."
        )
        caption = "The rows by reward."
    else:
        label = "advantage A = R − V(x), in reward"
        svg = figures.kept_and_dropped(rows["advantage"], kept, label=label)
        caption = "A row left of 0 earns less than the reference is expected to earn."
        drawn.append(Figure("Advantage of the training rows", svg, caption))
        caption = "The same rows by reward."
        if summary.drops:
            caption += " The same reward is kept where V(x) is low and dropped where it is high."
    drawn += transform_figures(scored)
    svg = figures.kept_and_dropped(rows["reward"], kept, label="reward R")
    drawn.append(Figure("Reward of the training rows", svg, caption))
    return Section(
        "advantages",
        TRAINED_ON,
        tuple(text),
        tuple(scored.notes),
        tuple(drawn),
        (_by_source(rows, value),),
    )


def _by_source(rows: Rows[Annotated], value: Value | None) -> Table:
    columns = [Column("source", False)]
    columns += [Column(n, True) for n in ("rows", "kept", "share kept", "mean reward")]
    columns.append(Column("mean advantage", True))
    lines = []
    for source in sorted(rows["source"].distinct()):
        lines.append(_source_row(source, rows, rows["source"].equal(source), value))
    if len(lines) > 1:
        every = np.ones(len(rows), bool)
        lines.append(_source_row("all", rows, every, value)._replace(strong=True))
    return Table("Kept rows by source", tuple(columns), tuple(lines))


def _source_row(name: str, rows: Rows[Annotated], mask: np.ndarray, value: Value | None) -> Row:
    kept, count = int(rows["kept"][mask].sum()), int(mask.sum())
    advantage = Cell("–") if value is None else _mean(rows["advantage"][mask])
    return Row(
        (
            Cell(name),
            Cell(f"{count:,}", exact=count),
            Cell(f"{kept:,}", exact=kept),
            Cell(f"{100 * kept / count:.1f}%", share=kept / count),
            _mean(rows["reward"][mask]),
            advantage,
        )
    )


def extremes(table: TrainingTable, value: Value | None) -> Section:
    """The rows with the highest and lowest advantage, or reward if there is no advantage."""
    what = "reward" if value is None else "advantage"
    ranked = np.argsort(table.rows[what], kind="stable")
    least = ranked[: min(EXTREMES, len(ranked) // 2)]
    most = ranked[::-1][: min(EXTREMES, len(ranked) - len(least))]
    columns = [Column("prompt", False), Column("response", False)]
    columns += [Column(name, True) for name in ("reward", "value", "advantage")]

    def line(row: Annotated) -> Row:
        judged = (Cell("–"),) * 2
        if value is not None:
            judged = (_number(row.value), Cell(signed(row.advantage, 3), exact=row.advantage))
        texts = (shorten_start(row.prompt_text, 240), shorten(row.response_text, 240))
        return Row((*texts, _number(row.reward), *judged))

    tables = (
        Table(f"Most {what}", tuple(columns), tuple(map(line, table.rows.take(most)))),
        Table(f"Least {what}", tuple(columns), tuple(map(line, table.rows.take(least)))),
    )
    text = (f"The training rows with the most and the least {what}.",)
    return Section("extremes", "Best and worst training rows", text, tables=tables)


def value_head(
    value: Value | None, summary: RunSummary, agreement: Agreement | None = None
) -> Section:
    """How well the value head predicts: a sentence, a table and a calibration plot."""
    title = "Value head"
    if value is None:
        said = f"The objective {summary.objective} does not read the advantage: no value head."
        return Section("value", title, (said,))
    audit = value.audit
    gained = explained_variance(audit)
    if gained is None:
        said = "All observed rewards are equal, so there is no variance to explain."
    elif gained > 0:
        said = (
            f"On rows it was not fitted on, the head explains {100 * gained:.1f}% of the variance."
        )
    else:
        said = (
            "The value head is no better than always predicting the mean reward (explained "
            f"variance {signed(100 * gained, 1)}%): it tells easy prompts from hard ones no better "
            "than a constant, so the advantage ranks rows about as the reward alone would."
        )
    if audit.mse >= audit.mse_of_length:
        said += " A straight line in the prompt length predicts at least as well."
    errors = (
        ("value head", audit.mse),
        ("a straight line in the prompt length", audit.mse_of_length),
        ("always the mean reward", audit.mse_of_mean),
    )
    lines = [Row((Cell(name), Cell(f"{mse:.4f}", exact=mse))) for name, mse in errors]
    columns = (Column("prediction", False), Column("mean squared error", True))
    svg = figures.calibration(*calibration_bins(audit, bins=BINS))
    caption = (
        f"{len(audit.predicted):,} out-of-fold predictions in equal bins; bars are two standard "
        "errors of the observed mean. On the dashed line prediction and observation agree."
    )
    return Section(
        "value",
        title,
        (said, *rests_on(agreement)),
        figures=(Figure("Calibration", svg, caption),),
        tables=(Table("", columns, tuple(lines)),),
    )


def side_by_side(evaluation: Evaluation, count: int) -> Section:
    """Prompts with the answers of the reference and the policy."""
    scored = bool(evaluation.differences)
    shown = sample_pairs(evaluation, count)
    how = (
        "evenly spaced over all prompts sorted by policy − reference, so that the best, the "
        "neutral and the worst are all shown, best first"
        if scored
        else "evenly spaced over the test set; nothing scored the answers"
    )
    comparisons = []
    for ours, theirs in shown:
        answers = (_answer("reference", ours, evaluation), _answer("policy", theirs, evaluation))
        change = signed(theirs.reward - ours.reward, 3) if scored else ""
        comparisons.append(Comparison(shorten_start(ours.prompt, 400), change, answers))
    text = (f"{len(shown)} of {len(evaluation.policy):,} test prompts, {how}.",)
    return Section("answers", "Answers side by side", text, comparisons=tuple(comparisons))


def _answer(name: str, row: Scored, evaluation: Evaluation) -> Answer:
    if not evaluation.differences:
        return Answer(name, row.response, "", "")
    parts = zip(evaluation.component_names, row.components, strict=True)
    said = " · ".join(f"{part} {score:.2f}" for part, score in parts)
    return Answer(name, row.response, f"{row.reward:.3f}", said)


def versions(summary: RunSummary) -> Section:
    """The package versions of the run, and the commits that were read of the hub."""
    columns = (Column("package", False), Column("version", False))
    tables = [Table("", columns, _pairs(summary.versions))]
    if summary.commits:
        columns = (Column("read from the Hugging Face hub", False), Column("commit", False))
        tables.append(Table("", columns, _pairs(summary.commits)))
    return Section("versions", "Versions", tables=tuple(tables))


def _pairs(pairs: Sequence[tuple[str, str]]) -> tuple[Row, ...]:
    return tuple(Row((Cell(name), Cell(value))) for name, value in pairs)


def _measure(measure: Measure) -> Cell:
    """A cell of the result table: rounded text and exact value."""
    if measure.mean is None:
        return Cell("–")
    if measure.system == DIFFERENCE:
        bounds = f"[{signed(measure.low, 3)}, {signed(measure.high, 3)}]"
        return Cell(signed(measure.mean, 3), exact=measure.mean, interval=bounds)
    mean, low, high = (f"{x:.{digits_of(measure.metric)}f}" for x in measure[2:5])
    return Cell(mean, exact=measure.mean, interval=f"[{low}, {high}]")


def _number(value: float) -> Cell:
    return Cell(f"{value:.3f}".replace("-", "−"), exact=value)


def _mean(values: np.ndarray) -> Cell:
    return _number(float(np.mean(values)))
