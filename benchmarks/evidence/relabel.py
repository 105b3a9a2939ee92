"""The answers of `labels`, labelled anew by readers who do not know whose they are.

    python -m benchmarks.evidence.relabel --workdir=runs/evidence/labels --seed=0
    python -m benchmarks.evidence.relabel --workdir=runs/evidence/labels --seed=0 \
        --reading=filter --systems=a_lol,nll_filtered

Writes ``<workdir>/relabel/<reading>/<seed>/``: sheets of ten test prompts, each with the answers of
the reference, of the seed's policies (``--systems``; all if not given), and those that people
labelled, in random order and equal ones once; and ``key.json``, which says whose they are. The
reader of ``sheet-3.md`` writes ``sheet-3.json``: for each prompt a list of ``[label, fit]``, one
for each answer. `draw` counts them, and compares the reader's labels with people's. Another reading
has other sheets, for other readers.

Texts of the audit stay beside the runs: only numbers are collected.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.runs.command_line import guarded
from alol_jax.runs.progress import say
from alol_jax.tasks import dialogue
from benchmarks.evidence.relabelled import KEY, RELABEL
from benchmarks.evidence.stored import evaluation_of, runs_of
from benchmarks.evidence.words import one_line

PROMPTS = 10  # of a sheet
TASK = """\
Someone said the last turn; the speaker who answers has the knowledge before them. Label each answer
by what it says, not by how it says it:

* `entailment`: all that it claims is in the knowledge;
* `entailment, uncooperative`: so it is, but it is no answer to the last turn;
* `generic`: it claims nothing ("That is nice", a question);
* `partial hallucination`: some of what it claims is in the knowledge, some is not;
* `hallucination`: nothing of what it claims is in the knowledge. Opinions, feelings and experiences
  of the speaker are claims, too;
* `uncooperative`: it claims nothing and is no answer to the last turn.

Then say how well it fits as the next turn, whatever its label: 2 for a natural one, 1 for one that
can pass, 0 for one that does not follow, echoes, breaks off or repeats itself."""

Entry = dict[str, list[str]]
"""Of one answer: the ``systems`` that gave it, and the ``labels`` that people gave it."""


class Read(NamedTuple):
    """A test prompt and its distinct answers."""

    prompt: str
    answers: dict[str, Entry]  # by text

    def add(self, text: str, kind: str, name: str) -> None:
        """Note whose answer this is (``systems``), or what people said of it (``labels``)."""
        self.answers.setdefault(one_line(text), {"systems": [], "labels": []})[kind].append(name)

    def in_words(self, number: int, order: Sequence[int]) -> str:
        """The knowledge, the turns and the answers in this order, as Markdown."""
        turns = dialogue.turns_of(self.prompt)
        texts = list(self.answers)
        lines = (
            f"## {number}",
            f"**Knowledge:** {one_line(dialogue.pair(self.prompt, '')[0])}",
            "\n".join(f"* {one_line(turn)}" for turn in turns),
            "\n".join(f"{n}. {texts[at]}" for n, at in enumerate(order, 1)),
        )
        return "\n\n".join(lines)


def read(workdir: Path, seed: int, names: Sequence[str] = ()) -> list[Read]:
    """Return the test prompts with the answers of a seed's policies, of all if none is named.

    Raises:
        UserError: no policy of the seed is evaluated, or one that is named is not.
    """
    found: dict[str, Read] = {}
    folders = {name: folder for name, number, folder in runs_of(workdir) if number == seed}
    for name in names:
        if name not in folders:
            raise UserError.unknown(f"--systems: no {name!r} of --seed={seed}", name, folders)
    for name in names or folders:
        evaluation = evaluation_of(folders[name])
        systems = {name: evaluation.policy}
        if not found:
            systems["reference"] = evaluation.reference
        for system, rows in systems.items():
            for prompt, text in zip(rows["prompt"], rows["response"], strict=True):
                found.setdefault(prompt, Read(prompt, {})).add(text, "systems", system)
    if not found:
        raise UserError(f"--workdir={workdir}: no policy of --seed={seed} is evaluated")
    for line in (workdir / "rows" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        prompt = dialogue.prompt_of(answer["knowledge"], answer["history"])
        if prompt in found:  # config.task.test keeps only some
            found[prompt].add(answer["response"], "labels", answer["BEGIN"][0])
    return list(found.values())


def sheets(rows: Sequence[Read], seed: int) -> tuple[list[str], list[list[Entry]]]:
    """The sheets, and the key: the entries of each prompt's answers in the order of the sheet."""
    draws = np.random.default_rng(seed)
    texts, key = [], []
    for start in range(0, len(rows), PROMPTS):
        parts = [TASK]
        for number, one in enumerate(rows[start : start + PROMPTS], 1):
            order = draws.permutation(len(one.answers))
            parts.append(one.in_words(number, order))
            entries = list(one.answers.values())
            key.append([entries[at] for at in order])
        texts.append("\n\n".join(parts) + "\n")
    return texts, key


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.evidence.relabel", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of labels")
    parser.add_argument("--seed", type=int, default=0, help="of the policies")
    parser.add_argument("--reading", default="all", help="a name for it")
    parser.add_argument("--systems", default="", help="the policies to read, with commas")
    options = parser.parse_args()
    folder = options.workdir / RELABEL / options.reading / str(options.seed)
    if any(folder.glob("sheet-*.json")):
        raise UserError(f"{folder} has sheets that are read: new ones would not fit them")
    names = [name for name in options.systems.split(",") if name]
    texts, key = sheets(read(options.workdir, options.seed, names), options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"sheet-{number}.md").write_text(text, encoding="utf-8")
    (folder / KEY).write_text(json.dumps(key), encoding="utf-8")
    say(f"{len(texts)} sheets in {folder}")


if __name__ == "__main__":
    sys.exit(guarded(main, debug=lambda: False))
