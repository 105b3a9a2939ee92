"""What candidates for the reward pay: collected from `candidates`' runs, and as tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from alol_jax.reports.statistics import distinct
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.workdir import finished_stage
from alol_jax.tables.table import Table
from alol_jax.types import Scored, ScoredSplits
from benchmarks.evidence.candidates import CANDIDATES, OF_ROWS, ROWS, SUMS
from benchmarks.evidence.stored import evaluation_of, value_of
from benchmarks.evidence.summaries import Plain, difference
from benchmarks.evidence.words import gain, one_line, titled

SHOWN = 4  # rows of a candidate, best-paid and worst-paid


def collected(workdir: Path) -> Plain | None:
    """The rows that each candidate pays best and worst, and the answers that each sum leads to."""
    scored = finished_stage(workdir / ROWS, "score")
    if scored is None:
        return None
    return {"rows": _rows(load_result(scored.folder, ScoredSplits)), "sums": list(_sums(workdir))}


def _rows(scored: ScoredSplits) -> Plain:
    """Candidate -> ``best`` and ``worst``: triples of score, prompt and response."""
    scores = dict(zip(scored.component_names, scored.train["components"].matrix.T, strict=True))
    scores["+".join(SUMS[-1])] = np.sum([scores[name] for name in SUMS[-1]], axis=0)
    texts = list(zip(scored.train["prompt"], scored.train["response"], strict=True))
    return {
        name: {
            end: [[round(float(column[at]), 3), *texts[at]] for at in order[:SHOWN]]
            for end, order in (
                ("best", np.argsort(-column, kind="stable")),
                ("worst", np.argsort(column, kind="stable")),
            )
        }
        for name, column in ((name, scores[name]) for name in (*OF_ROWS, "+".join(SUMS[-1])))
    }


def _sums(workdir: Path) -> Iterator[Plain]:
    for paid in SUMS:
        name = "+".join(paid)
        run = workdir / name / "a_lol-0"
        if finished_stage(run, "evaluate") is not None:
            found, value = evaluation_of(run), value_of(workdir / name / "shared")
            names = found.component_names
            systems = {of: _judged(getattr(found, of), names) for of in ("reference", "policy")}
            yield {"sum": name, "kept": value["kept"], "rows": value["rows"], **systems}


def _judged(rows: Table[Scored], names: tuple[str, ...]) -> Plain:
    """Of a system: each candidate's score of each answer, echoes, and distinct-2."""
    answers = list(rows["response"])
    columns = dict(zip(names, rows["components"].matrix.T.round(4).tolist(), strict=True))
    return {
        "scores": columns,
        "echoes": sum(map(is_echo, rows["prompt"], answers)),
        "distinct-2": distinct(answers, 2),
    }


def is_echo(prompt: str, answer: str) -> bool:
    """Whether an answer has the prompt's words in its order, and no others."""
    said, asked = (re.findall(r"\w+", text.lower()) for text in (answer, prompt))
    return said == asked and bool(said)


def gains(one: Plain, parts: Sequence[str]) -> np.ndarray:
    """f64[1, prompts]: what a policy earns above the reference, in the sum of ``parts``."""
    policy, reference = (
        np.sum([one[of]["scores"][part] for part in parts], axis=0)
        for of in ("policy", "reference")
    )
    return (policy - reference)[None]


def tables(found: Plain) -> list[str]:
    """What each sum leads to, and the rows that each candidate pays."""
    lines = []
    for one in found["sums"]:
        name = one["sum"]
        earned = gain(difference(gains(one, name.split("+"))))
        kept = f"{one['kept']} of {one['rows']}"
        if not lines:
            lines.append(("reference", "", "", *_means(one["reference"])))
        elif one["reference"] != found["sums"][0]["reference"]:
            lines.append((f"reference of {name}", "", "", *_means(one["reference"])))
        lines.append((name, kept, earned, *_means(one["policy"])))
    heads = ("paid", "kept", "policy − reference, in that sum", *CANDIDATES, "echoes", "distinct-2")
    title = "Answers to the test prompts, scored with every candidate; means [95% over prompts]"
    parts = [titled(title, heads, lines)] * bool(lines)
    for name, ends in found["rows"].items():
        rows = [
            (f"{score:.3f}", *map(one_line, texts))
            for end in ("best", "worst")
            for score, *texts in ends[end]
        ]
        title = f"Training rows that {name} pays best, and worst"
        parts.append(titled(title, ("score", "prompt", "response"), rows, texts=3))
    return parts


def _means(system: Plain) -> Iterator[str]:
    yield from (f"{np.mean(system['scores'][of]):.3f}" for of in CANDIDATES)
    yield str(system["echoes"])
    yield f"{system['distinct-2']:.3f}"
