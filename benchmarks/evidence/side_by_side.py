"""The answers of `labels` side by side, to be read: best-labelled, reference and every objective.

Texts of the audit stay beside the runs, in ``<runs>/labels/side_by_side.md``: only numbers are
collected.
"""

from __future__ import annotations

from pathlib import Path

from alol_jax.rewards.gold import by_prompt
from alol_jax.runs.artifacts import load_fields
from alol_jax.runs.workdir import finished_stage
from alol_jax.tasks import dialogue
from alol_jax.types import ScoredSplits
from benchmarks.evidence.stored import evaluation_of, runs_of
from benchmarks.evidence.words import one_line

SHOWN = 10  # test prompts


def side_by_side(workdir: Path) -> str:
    """The answers of each objective's first evaluated seed, as Markdown."""
    firsts = {}
    for name, _, folder in runs_of(workdir):
        firsts.setdefault(name, folder)
    evaluations = {name: evaluation_of(folder) for name, folder in firsts.items()}
    if not evaluations:
        return ""
    reference = next(iter(evaluations.values())).reference
    shared = finished_stage(workdir / "shared", "score").folder
    gold = by_prompt(load_fields(shared, ScoredSplits, ("gold",))[0])
    parts = []
    for place, prompt in enumerate(list(reference["prompt"])[:SHOWN]):
        answers = {
            "best-labelled": " / ".join(gold[prompt]),
            "reference": reference["response"][place],
            **{name: one.policy["response"][place] for name, one in evaluations.items()},
        }
        lines = [
            f"**Knowledge:** {one_line(dialogue.pair(prompt, '')[0])}  ",
            f"**Turn:** {one_line(dialogue.turns_of(prompt)[-1])}",
            "",
            *(f"- *{name}:* {one_line(answer)}" for name, answer in answers.items()),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
