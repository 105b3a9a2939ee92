"""Answers side by side: the data's, the reference's and the policy's, as a Markdown table.

    python -m benchmarks.evidence.samples --workdir=runs/quickstart --count=20
    python -m benchmarks.evidence.samples --workdir=runs/quickstart --count=208 \\
        --blind=runs/evidence/reading/0 --seed=0

The prompts are evenly spaced over the test prompts, so nobody chose them. With ``--blind``, the
answers of reference and policy stand as A and B in ``pairs.md``, in an order drawn with ``--seed``,
and which is the policy's in ``key.json``: for a reader who should not know. The reader writes a
list of "A", "B" (the better one) and "=" as ``verdicts.json`` beside them, which `draw` counts by
seed, the name of the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from alol_jax.errors import UserError
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.command_line import guarded
from alol_jax.runs.workdir import finished_stage
from alol_jax.types import Evaluation
from benchmarks.evidence.words import one_line, table

Firsts = Mapping[str, str]  # prompt -> the first answer to it
SYSTEMS = ("data", "reference", "policy")


def answers_of(workdir: Path, count: int) -> tuple[list[str], dict[str, Firsts]]:
    """Return ``count`` test prompts of a finished run, and what each system answers.

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
    answers = {}
    for name in SYSTEMS:
        rows = getattr(found, name)
        pairs = list(zip(rows["prompt"], rows["response"], strict=True))
        answers[name] = dict(reversed(pairs))
    at = np.linspace(0, len(prompts) - 1, count).round().astype(int)
    return [prompts[place] for place in at], answers


def samples(workdir: Path, count: int) -> str:
    """The answers of all three, as a table; raises what `answers_of` raises."""
    prompts, answers = answers_of(workdir, count)
    lines = [[p, *(answers[name][p] for name in SYSTEMS)] for p in prompts]
    return _texts(("prompt", *SYSTEMS), lines)


def blind(workdir: Path, count: int, seed: int) -> tuple[str, list[str]]:
    """Reference and policy as A and B in random order, as a table, and which is the policy's."""
    prompts, answers = answers_of(workdir, count)
    first = np.random.default_rng(seed).random(count) < 0.5
    lines = []
    for prompt, is_first in zip(prompts, first, strict=True):
        pair = [answers[name][prompt] for name in ("reference", "policy")]
        lines.append([prompt, *(reversed(pair) if is_first else pair)])
    return _texts(("prompt", "A", "B"), lines), ["A" if one else "B" for one in first]


def _texts(heads: tuple[str, ...], lines: list[list[str]]) -> str:
    return table(heads, [list(map(one_line, line)) for line in lines], texts=len(heads))


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.evidence.samples", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--count", type=int, default=20, help="prompts to show")
    parser.add_argument("--blind", type=Path, help="a folder for pairs in random order")
    parser.add_argument("--seed", type=int, default=0, help="of this order")
    options = parser.parse_args()
    if options.blind is None:
        print(samples(options.workdir, options.count))
        return
    pairs, key = blind(options.workdir, options.count, options.seed)
    options.blind.mkdir(parents=True, exist_ok=True)
    (options.blind / "pairs.md").write_text(pairs + "\n", encoding="utf-8")
    (options.blind / "key.json").write_text(json.dumps(key), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(guarded(main, debug=lambda: False))
