"""A comparison as CSV, JSON, LaTeX tables and plain text for the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Sequence

from alol_jax.reports.compare.rows import DATA, RUN, Group, RunResult, differing_settings
from alol_jax.reports.compare.table import CONFIDENCE, Comparison, Estimate
from alol_jax.reports.compare.words import (
    description,
    format_estimate,
    format_value,
    in_chunks,
    set_name,
)
from alol_jax.reports.results import TEXT_METRICS, TOTAL, plain, prompt_count
from alol_jax.reports.stored_rewards import explained

WIDTH = 100  # of the text table, in characters
NAME, WIDTHS = 25, (24, 24, 7, 8, 12)  # of its columns
COSTS = ("tokens", "seconds", "flops")
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"\textperiodcentered{}",
    "…": r"\ldots{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
"""Character -> the LaTeX that prints it."""


def to_csv(found: Comparison) -> str:
    """The estimates, one per line, in full precision; missing numbers are empty fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Estimate._fields)
    writer.writerows(found.estimates.values())
    return text.getvalue()


def to_json(found: Comparison) -> str:
    """The runs, the settings in which they differ, and the estimates of the CSV file.

    Raises:
        ValueError: a number is not finite.
    """
    numbers = {
        "against": found.against,
        "confidence": CONFIDENCE,
        "test_prompts": prompt_count(found.runs[0].evaluation),
        "rewards": found.rewards,
        "test_sets": found.sets,
        "runs": [
            _described(row.name, group, row.run) for group in found.trained for row in group.rows
        ],
        "different_settings": {
            field: {
                row.name: str(row.run.settings[field])
                for row in found.rows
                if row.kind == RUN and field in row.run.settings
            }
            for field in differing_settings(found.runs)
        },
        "estimates": [estimate._asdict() for estimate in found.estimates.values()],
    }
    return json.dumps(numbers, indent=1, allow_nan=False) + "\n"


def _described(name: str, group: Group, run: RunResult) -> dict[str, object]:
    return {
        "row": name,
        "group": group.name,
        "workdir": str(run.workdir),
        "objective": run.objective,
        "seed": run.seed,
        "model": run.settings.get("model.path"),
        "reference": run.reference,
        "validations": [
            {
                "step": one.step * run.updates,
                "metric": one.metric,
                "score": one.score if math.isfinite(one.score) else None,
            }
            for one in run.fit.validations
        ],
    }


def to_latex(found: Comparison) -> str:
    """LaTeX tables (booktabs) with one row per group: means over seeds, with intervals.

    One table of all metrics, then tables of the total reward by test set, then the measures by the
    stored rewards, then the training cost.
    """
    names = found.rewards[:-1]
    heads = [TOTAL, f"{TOTAL} $-$ {escaped(found.against)}", *["sd over seeds"] * found.has_spread]
    heads += [*map(escaped, names), *TEXT_METRICS, "KL"]
    tables = [_tabular(found, heads, lambda group: _all_cells(found, group))]
    for sets in in_chunks(found.sets):
        tables.append(
            _tabular(
                found,
                [escaped(set_name(name)) for name in sets],
                lambda group, sets=sets: [
                    _latex(found.value(group.row_name, TOTAL, name)) for name in sets
                ],
            )
        )
    if found.stored:
        heads = [head for name in found.stored for head in (name, f"$-$ {escaped(found.against)}")]
        tables.append(_tabular(found, heads, lambda group: _stored_cells(found, group)))
    tables.append(_tabular(found, COSTS, lambda group: _cost_cells(found, group), untrained=False))
    notes = ("\\usepackage{booktabs}", *description(found))
    return "\n".join([*(f"% {line}" for line in notes), *tables])


def _tabular(
    found: Comparison,
    heads: Sequence[str],
    cells: Callable[[Group], Sequence[str]],
    *,
    untrained: bool = True,
) -> str:
    """One LaTeX table; with ``untrained``, the references and the data have rows too."""

    def row(group: Group) -> str:
        return " & ".join([escaped(group.row_name), *cells(group)]) + r" \\"

    lines = [
        f"\\begin{{tabular}}{{l{'r' * len(heads)}}}",
        "\\toprule",
        " & ".join(["", *heads]) + r" \\",
        "\\midrule",
        *(row(group) for group in found.groups if group.kind == RUN),
        *(["\\midrule"] * untrained),
        *(row(group) for group in found.groups if group.kind != RUN and untrained),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _all_cells(found: Comparison, group: Group) -> list[str]:
    total = found.value(group.row_name, TOTAL)
    gain = None if found.is_base(group) else found.difference(group.row_name)
    cells = [_latex(total), _latex(gain)]
    if found.has_spread:
        sd = None if total is None else total.sd
        cells.append("--" if sd is None else f"${format_value(TOTAL, sd)}$")
    cells += [_latex(found.value(group.row_name, name)) for name in found.rewards[:-1]]
    return cells + [_latex(found.value(group.row_name, name)) for name in (*TEXT_METRICS, "kl")]


def _stored_cells(found: Comparison, group: Group) -> list[str]:
    cells = []
    for metric in found.stored:
        gain = None if found.is_base(group) else found.difference(group.row_name, metric)
        cells += [_latex(found.value(group.row_name, metric)), _latex(gain)]
    return cells


def _cost_cells(found: Comparison, group: Group) -> list[str]:
    return [_latex(found.value(group.row_name, name)) for name in COSTS]


def _latex(estimate: Estimate | None) -> str:
    if estimate is None:
        return "--"
    mean, interval = format_estimate(estimate)
    return f"${mean}$" + (f" {{\\scriptsize ${interval}$}}" if interval else "")


def escaped(text: str) -> str:
    """Escape a name for LaTeX."""
    return "".join(LATEX.get(character, character) for character in text)


def plain_table(found: Comparison) -> str:
    """Aligned text, at most ``WIDTH`` wide: one line per group, then the totals by seed."""
    heads = ("total", f"- {_cut(found.against, NAME - 4)}", "KL", "length", "distinct-2")
    lines = [line for said in description(found) for line in textwrap.wrap(said, WIDTH)]
    lines.append(_line("", heads))
    for group in found.groups:
        gain = None if found.is_base(group) else found.difference(group.row_name)
        cells = [found.value(group.row_name, TOTAL), gain]
        cells += [found.value(group.row_name, name) for name in ("kl", "length", "distinct-2")]
        texts = ["-" if e is None else " ".join(format_estimate(e)).rstrip() for e in cells]
        texts[2:] = [text.split(" ")[0] for text in texts[2:]]  # no room for their intervals
        lines.append(_line(group.row_name, texts))
    lines += _stored(found)
    if found.has_spread and found.rows[0].values is not None:
        lines.append(_line("total by seed", ("mean", "sd")))
        lines += [_seeds(found, group) for group in found.groups if len(group.rows) > 1]
    return "\n".join(lines)


def _stored(found: Comparison) -> list[str]:
    """The measures by the stored rewards, one line per measure and group."""
    if not found.stored:
        return []
    lines = [_line("by the stored rewards", ("value", f"- {_cut(found.against, NAME - 4)}"))]
    for metric in found.stored:
        lines.append(metric)
        for group in found.groups:
            if group.kind == DATA:
                continue
            gain = None if found.is_base(group) else found.difference(group.row_name, metric)
            cells = (found.value(group.row_name, metric), gain)
            texts = ["-" if e is None else " ".join(format_estimate(e)).rstrip() for e in cells]
            lines.append(_line(f"  {group.row_name}", texts))
    for said in explained(found.stored):
        lines += textwrap.wrap(plain(said), WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


def _line(name: str, cells: Sequence[str]) -> str:
    texts = (f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=False))
    return f"{_cut(name, NAME):<{NAME}}" + "".join(texts)


def _seeds(found: Comparison, group: Group) -> str:
    mean = found.value(group.name, TOTAL)
    if mean is None:
        return _line(group.name, ("-", "-"))
    each = (found.value(row.name, TOTAL).mean for row in group.rows)
    texts = " ".join(format_value(TOTAL, value) for value in each)
    line = _line(group.name, (format_value(TOTAL, mean.mean), format_value(TOTAL, mean.sd)))
    return _cut(f"{line}   {texts}", WIDTH)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
