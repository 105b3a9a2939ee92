"""Answers side by side: the data's, the reference's and the policy's, as a Markdown table.

    python -m benchmarks.evidence.samples --workdir=runs/quickstart --count=20

The prompts are evenly spaced over the test prompts, so nobody chose them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from alol_jax.errors import UserError
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.command_line import guarded
from alol_jax.runs.workdir import finished_stage
from alol_jax.types import Evaluation
from benchmarks.evidence.tables import one_line, table


def samples(workdir: Path, count: int) -> str:
    """The first answers of all three to ``count`` test prompts of a finished run.

    Raises:
        UserError: the run is not evaluated, or has fewer test prompts.
    """
    stage = finished_stage(workdir, "evaluate")
    if stage is None:
        raise UserError(f"--workdir={workdir} has no evaluated run")
    found = load_result(stage.folder, Evaluation)
    prompts = list(found.policy["prompt"])
    if not 0 < count <= len(prompts):
        raise UserError(f"--count={count}: the run has {len(prompts)} test prompts")
    answers = []
    for rows in (found.data, found.reference, found.policy):
        pairs = reversed(list(zip(rows["prompt"], rows["response"], strict=True)))
        answers.append(dict(pairs))  # the first of several
    at = np.linspace(0, len(prompts) - 1, count).round().astype(int)
    lines = [
        [one_line(text) for text in (prompt, *(each[prompt] for each in answers))]
        for prompt in (prompts[place] for place in at)
    ]
    return table(("prompt", "data", "reference", "policy"), lines, texts=4)


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.evidence.samples", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--count", type=int, default=20, help="prompts to show")
    options = parser.parse_args()
    print(samples(options.workdir, options.count))


if __name__ == "__main__":
    sys.exit(guarded(main, debug=lambda: False))
