"""A comparison as CSV, JSON, a LaTeX table and plain text for the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Sequence

from alol_jax.reports.compare.rows import RUN, Group, RunResult, differing
from alol_jax.reports.compare.table import CONFIDENCE, TEXT, Comparison, Estimate
from alol_jax.reports.compare.words import about, in_parts, printed, rounded, set_name
from alol_jax.reports.results import TOTAL, prompt_count

WIDTH = 100  # columns of the terminal: a name and the columns of the table
NAME, WIDTHS = 25, (24, 24, 7, 8, 12)
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
"""Character -> what LaTeX prints as that character."""


def to_csv(found: Comparison) -> str:
    """The estimates, one a line, in full precision; an empty field where there is no figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Estimate._fields)
    writer.writerows(found.estimates.values())
    return text.getvalue()


def to_json(found: Comparison) -> str:
    """The runs and what tells them apart, and the estimates of the CSV file.

    Raises:
        ValueError: a figure is not finite.
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
            for field in differing(found.runs)
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
                "step": look.step * run.updates,
                "metric": look.metric,
                "score": look.score if math.isfinite(look.score) else None,
            }
            for look in run.fit.validations
        ],
    }


def to_latex(found: Comparison) -> str:
    """Tables for booktabs, one row per group with the means over its seeds and their intervals:
    all figures, then the total reward of the test sets, a few in a table, then what the fits
    took."""
    names = found.rewards[:-1]
    heads = [TOTAL, f"{TOTAL} $-$ {escaped(found.against)}", *["sd over seeds"] * found.has_spread]
    heads += [*map(escaped, names), *TEXT, "KL"]
    tables = [_tabular(found, heads, lambda group: _all_cells(found, group))]
    for some in in_parts(found.sets):
        tables.append(
            _tabular(
                found,
                [escaped(set_name(name)) for name in some],
                lambda group, some=some: [
                    _latex(found.value(group.line, TOTAL, name)) for name in some
                ],
            )
        )
    tables.append(_tabular(found, COSTS, lambda group: _cost_cells(found, group), beside=False))
    notes = ("\\usepackage{booktabs}", *about(found))
    return "\n".join([*(f"% {line}" for line in notes), *tables])


def _tabular(
    found: Comparison,
    heads: Sequence[str],
    cells: Callable[[Group], Sequence[str]],
    *,
    beside: bool = True,
) -> str:
    """``beside``: the references and the data have rows too."""

    def row(group: Group) -> str:
        return " & ".join([escaped(group.line), *cells(group)]) + r" \\"

    lines = [
        f"\\begin{{tabular}}{{l{'r' * len(heads)}}}",
        "\\toprule",
        " & ".join(["", *heads]) + r" \\",
        "\\midrule",
        *(row(group) for group in found.groups if group.kind == RUN),
        *(["\\midrule"] * beside),
        *(row(group) for group in found.groups if group.kind != RUN and beside),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _all_cells(found: Comparison, group: Group) -> list[str]:
    total = found.value(group.line, TOTAL)
    gain = None if found.is_base(group) else found.difference(group.line)
    cells = [_latex(total), _latex(gain)]
    if found.has_spread:
        sd = None if total is None else total.sd
        cells.append("--" if sd is None else f"${rounded(TOTAL, sd)}$")
    cells += [_latex(found.value(group.line, name)) for name in found.rewards[:-1]]
    return cells + [_latex(found.value(group.line, name)) for name in (*TEXT, "kl")]


def _cost_cells(found: Comparison, group: Group) -> list[str]:
    return [_latex(found.value(group.line, name)) for name in COSTS]


def _latex(estimate: Estimate | None) -> str:
    if estimate is None:
        return "--"
    mean, interval = printed(estimate)
    return f"${mean}$" + (f" {{\\scriptsize ${interval}$}}" if interval else "")


def escaped(text: str) -> str:
    """A name that LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def plain_table(found: Comparison) -> str:
    """Aligned text of at most ``WIDTH`` columns: a line per group, then the totals by seed."""
    heads = ("total", f"- {_cut(found.against, NAME - 4)}", "KL", "length", "distinct-2")
    lines = [line for said in about(found) for line in textwrap.wrap(said, WIDTH)]
    lines.append(_line("", heads))
    for group in found.groups:
        gain = None if found.is_base(group) else found.difference(group.line)
        cells = [found.value(group.line, TOTAL), gain]
        cells += [found.value(group.line, name) for name in ("kl", "length", "distinct-2")]
        texts = ["-" if e is None else " ".join(printed(e)).rstrip() for e in cells]
        texts[2:] = [text.split(" ")[0] for text in texts[2:]]  # their intervals would not fit
        lines.append(_line(group.line, texts))
    if found.has_spread and found.rows[0].values is not None:
        lines.append(_line("total by seed", ("mean", "sd")))
        lines += [_seeds(found, group) for group in found.groups if len(group.rows) > 1]
    return "\n".join(lines)


def _line(name: str, cells: Sequence[str]) -> str:
    texts = (f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=False))
    return f"{_cut(name, NAME):<{NAME}}" + "".join(texts)


def _seeds(found: Comparison, group: Group) -> str:
    mean = found.value(group.name, TOTAL)
    if mean is None:
        return _line(group.name, ("-", "-"))
    each = (found.value(row.name, TOTAL).mean for row in group.rows)
    texts = " ".join(rounded(TOTAL, value) for value in each)
    line = _line(group.name, (rounded(TOTAL, mean.mean), rounded(TOTAL, mean.sd)))
    return _cut(f"{line}   {texts}", WIDTH)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
