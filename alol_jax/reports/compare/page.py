"""The HTML page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from alol_jax.reports.compare.ablations import ablation_section
from alol_jax.reports.compare.against import against_section
from alol_jax.reports.compare.curves import curve_section
from alol_jax.reports.compare.figures import is_hollow, paint_of
from alol_jax.reports.compare.frontiers import frontier_section
from alol_jax.reports.compare.rows import DATA, RUN, Group, differing_settings
from alol_jax.reports.compare.table import COST_METRICS, Comparison, Estimate
from alol_jax.reports.compare.words import (
    description,
    format_estimate,
    format_value,
    in_chunks,
    set_name,
    verdict,
)
from alol_jax.reports.page import Cell, Column, Page, Section, Table, render
from alol_jax.reports.page import Row as Line
from alol_jax.reports.results import EVERY, TOTAL, prompt_count
from alol_jax.reports.stored_rewards import BLIND, explained

HEADS = {"kl": "KL", "flops": "FLOPs", "step": "chosen step", "tokens": "trained tokens"}
"""Metric -> its column head, if that is not the metric's name."""
OTHER_METRICS = ("kl", "length", "distinct-1", "distinct-2", "distinct-3")
IQM = (
    "The interquartile mean leaves out a quarter of the values at each end, rounded down; so of "
    "fewer than four it is their mean. Its 95% interval is a bootstrap over the seeds."
)
UNITS = (
    "KL is to the reference, on the policy's own answers, in nats; length is in words; distinct-n "
    "is the share of different n-grams over all answers."
)


def to_html(found: Comparison) -> str:
    """The comparison as one self-contained page."""
    judged = verdict(found)
    prompts = prompt_count(found.runs[0].evaluation)
    models = dict.fromkeys(str(run.settings.get("model.path")) for run in found.runs)
    sections = (
        _results(found),
        _stored(found),
        against_section(found),
        frontier_section(found),
        ablation_section(found),
        _sets(found),
        _components(found),
        curve_section(found),
        _seeds(found),
        _cost(found),
        _settings(found),
        _runs(found),
    )
    return render(
        Page(
            title=f"Comparison of {len(found.runs)} run{'s' * (len(found.runs) != 1)}",
            badge=judged.badge,
            tone=judged.tone,
            verdict=judged.sentence,
            facts=(
                ("runs", f"{len(found.runs):,}"),
                ("test prompts", f"{prompts:,}"),
                ("compared with", found.against),
            ),
            run=(
                ("objectives", ", ".join(dict.fromkeys(run.objective for run in found.runs))),
                ("model", ", ".join(models)),
            ),
            sections=tuple(section for section in sections if section is not None),
        )
    )


def _results(found: Comparison) -> Section:
    columns = [Column("", False), Column("total reward", True)]
    columns.append(Column(f"difference to {found.against}", True))
    columns += [Column("sd over seeds", True)] * found.has_spread
    columns += [Column(HEADS.get(metric, metric), True) for metric in OTHER_METRICS]
    lines = []
    for group in found.groups:
        total = found.value(group.row_name, TOTAL)
        cells = [_name(found, group), _cell(total), _gain(found, group)]
        cells += [_spread(total, "sd")] * found.has_spread
        for metric in OTHER_METRICS:
            estimate = found.value(group.row_name, metric)
            bare = None if estimate is None else estimate._replace(low=None, high=None)
            cells.append(_cell(bare))
        lines.append(Line(tuple(cells)))
    text = (f"{' '.join(description(found))} {UNITS}", *_warnings(found))
    return Section("results", "Results", text, tables=(Table("", tuple(columns), tuple(lines)),))


def _warnings(found: Comparison) -> list[str]:
    """What a reader must know before trusting the table."""
    said = []
    models = {run.model for run in found.runs}
    if len(models) > 1:
        said.append(
            f"The runs began from {len(models)} different base models or adapters (see Settings): "
            "a difference may be due to the model rather than the objective."
        )
    if len(found.references) > 1:
        said.append(
            f"The runs have {len(found.references)} different reference policies; the KL is to "
            "each run's own."
        )
    if found.rows[0].values is None:
        said.append("No scorer judges the generated answers: they have no rewards.")
    return said


def _stored(found: Comparison) -> Section | None:
    """The measures by the stored rewards of the test rows, and their differences."""
    if not found.stored:
        return None
    columns = (Column("", False), *(Column(name, True) for name in found.stored))
    values, gains = [], []
    for group in found.groups:
        if group.kind == DATA:
            continue
        name = _name(found, group)
        cells = (_cell(found.value(group.row_name, metric)) for metric in found.stored)
        values.append(Line((name, *cells)))
        gains.append(Line((name, *(_gain(found, group, metric) for metric in found.stored))))
    tables = (
        Table("Value", columns, tuple(values)),
        Table(f"Difference to {found.against}", columns, tuple(gains)),
    )
    text = (*(f"{said[0].upper()}{said[1:]}." for said in explained(found.stored)), BLIND)
    return Section("stored", "By the stored rewards", text, tables=tables)


def _sets(found: Comparison) -> Section | None:
    """The total reward of each test set, and its difference."""
    if not found.sets or found.rows[0].values is None:
        return None
    tables = []
    for sets in in_chunks(found.sets):
        tables += _set_tables(found, sets)
    text = [
        "By the source of the test prompts; the number of prompts is in brackets. One prompt has "
        "no interval."
    ]
    return Section("sets", "Test sets", tuple(text), tables=tuple(tables))


def _set_tables(found: Comparison, sets: Sequence[str]) -> tuple[Table, Table]:
    sizes = {part.name: part.prompts for part in found.runs[0].evaluation.sets}
    columns = [Column("", False)]
    columns += [Column(f"{set_name(name)} ({sizes[name]:,})", True) for name in sets]
    values, gains = [], []
    for group in found.groups:
        cells = [_cell(found.value(group.row_name, TOTAL, name)) for name in sets]
        changes = [_gain(found, group, TOTAL, name) for name in sets]
        for row, lines in ((cells, values), (changes, gains)):
            shown = (
                cell if sizes[name] > 1 else cell._replace(interval="")
                for name, cell in zip(sets, row, strict=True)
            )
            lines.append(Line((_name(found, group), *shown)))
    return (
        Table("Total reward", tuple(columns), tuple(values)),
        Table(f"Difference to {found.against}", tuple(columns), tuple(gains)),
    )


def _components(found: Comparison) -> Section | None:
    """The unweighted components and their differences."""
    names = found.rewards[:-1]
    if not names or found.rows[0].values is None:
        return None
    columns = (Column("", False), *(Column(name, True) for name in names))
    values, gains = [], []
    for group in found.groups:
        name = _name(found, group)
        values.append(Line((name, *(_cell(found.value(group.row_name, part)) for part in names))))
        gains.append(Line((name, *(_gain(found, group, part) for part in names))))
    tables = (
        Table("Unweighted", columns, tuple(values)),
        Table(f"Difference to {found.against}", columns, tuple(gains)),
    )
    return Section("components", "Components of the reward", tables=tables)


def _seeds(found: Comparison) -> Section | None:
    """The spread over the seeds of each group."""
    groups = [group for group in found.groups if found.value(group.row_name, TOTAL) is not None]
    groups = [group for group in groups if len(group.rows) > 1]
    if not groups:
        return None
    heads = ("seeds", "mean total", "interquartile mean", "sd", "smallest", "largest")
    columns = (Column("", False), *(Column(name, True) for name in heads))
    lines = []
    for group in groups:
        total = found.value(group.row_name, TOTAL)
        count = Cell(str(total.seeds), exact=total.seeds)
        mean = _cell(total._replace(low=None, high=None))
        middle = _cell(total._replace(mean=total.iqm, low=total.iqm_low, high=total.iqm_high))
        spread = (_spread(total, name) for name in ("sd", "least", "most"))
        lines.append(Line((_name(found, group), count, mean, middle, *spread)))
    text = (
        "Spread of the runs' means over seeds: what another seed may change, as opposed to what "
        "other prompts may change (the bootstrap intervals of the other sections).",
        IQM,
    )
    table = Table("", columns, tuple(lines))
    return Section("seeds", "Seeds", text, tables=(table,))


def _cost(found: Comparison) -> Section:
    """The training cost of the policies."""
    columns = (Column("", False), *(Column(HEADS.get(name, name), True) for name in COST_METRICS))
    lines = []
    for group in found.trained:
        cells = (_cell(found.value(group.row_name, name)) for name in COST_METRICS)
        lines.append(Line((_name(found, group), *cells)))
    text = (
        "For training the policy only: tokens count as often as they were trained on, seconds are "
        "wall-clock time on whatever hardware was used, FLOPs are counted in closed form, padding "
        "included. Validations are not counted.",
    )
    return Section("cost", "Training cost", text, tables=(Table("", columns, tuple(lines)),))


def _settings(found: Comparison) -> Section:
    """The settings that differ between runs."""
    fields = differing_settings(found.runs)
    columns = (Column("setting", False), Column("values", False))
    lines = []
    for field in fields:
        by_value: dict[str, list[str]] = {}
        for group in found.trained:
            settings = group.rows[0].run.settings
            if field not in settings:
                continue
            value = str(settings[field])
            by_value.setdefault(value, []).append(group.name)
        said = "; ".join(f"{value}: {', '.join(names)}" for value, names in by_value.items())
        lines.append(Line((Cell(field), Cell(said))))
    if not fields:
        text = "Apart from objective and seed, all runs have the same settings."
        return Section("settings", "Settings that differ", (text,))
    text = ("Apart from objective and seed. Settings not listed are the same in all runs.",)
    table = Table("", columns, tuple(lines))
    return Section("settings", "Settings that differ", text, tables=(table,))


def _runs(found: Comparison) -> Section:
    """One line per run."""
    columns = [Column("", False), Column("workdir", False), Column("total reward", True)]
    columns.append(Column(f"difference to {found.against}", True))
    columns += [Column("KL", True), Column("chosen step", True)]
    lines = []
    for group in found.trained:
        for row in group.rows:
            cells = (
                _name(found, group)._replace(text=row.name),
                Cell(str(row.run.workdir)),
                _cell(found.value(row.name, TOTAL)),
                _cell(found.difference(row.name)),
                _cell(found.value(row.name, "kl")),
                _cell(found.value(row.name, "step")),
            )
            lines.append(Line(cells))
    return Section("runs", "Every run", tables=(Table("", tuple(columns), tuple(lines)),))


def _name(found: Comparison, group: Group) -> Cell:
    """The name of a group, marked with the colour of its curves."""
    if group.kind != RUN:
        return Cell(group.row_name, mark="plain")
    series = found.trained.index(group)
    return Cell(group.row_name, mark=paint_of(series) + " hollow" * is_hollow(series))


def _gain(found: Comparison, group: Group, metric: str = TOTAL, test_set: str = EVERY) -> Cell:
    if found.is_base(group):
        return Cell("–")
    return _cell(found.difference(group.row_name, metric, test_set))


def _cell(estimate: Estimate | None) -> Cell:
    """A table cell: rounded text and exact value."""
    if estimate is None:
        return Cell("–")
    mean, interval = (text.replace("-", "−") for text in format_estimate(estimate))
    return Cell(mean, exact=estimate.mean, interval=interval)


def _spread(estimate: Estimate | None, field: str) -> Cell:
    value = None if estimate is None else getattr(estimate, field)
    return Cell("–") if value is None else Cell(format_value(TOTAL, value), exact=value)
