"""People's labels as the reward: does the method leave out what people found unfaithful?

    python -m benchmarks.evidence.labels --audit=audit.jsonl --workdir=runs/evidence/labels

``audit.jsonl`` has a row for each prompt: ``knowledge``, ``history``, ``responses`` and, for each
response, ``begin`` (the label) and ``writer``. Rows become answers of FaithDial's form, with the
reward of their label::

    entailment 1 · entailment, uncooperative 0.75 · generic 0.5 · partial hallucination 0.25
    uncooperative 0.25 · hallucination 0

First turns, which the dialogue task does not read, and prompts of more than 75 words are left out.
The order of a hash of the prompt gives 80 test and 60 validation prompts; all others train. Then
every objective is trained with every seed on one reference. The numbers are a choice, not people's:
only their order comes from the labels.

Cost: docs/evidence.md. Run the same command again to go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from alol_jax.errors import UserError
from alol_jax.main import entry
from alol_jax.runs.command_line import connected
from alol_jax.runs.progress import say
from alol_jax.tasks import fields
from alol_jax.tasks.sources import read_listed
from benchmarks.evidence.running import Variants, asked, train

CONFIG = "configs/labels.py"
NAMES = ("nll", "wbc", "a_lol", "a_lol_seq", "dpo", "r_lol", "a_lol_ref_free")
REWARDS = {
    "entailment": 1.0,
    "entailment, uncooperative": 0.75,
    "generic": 0.5,
    "partial hallucination": 0.25,
    "uncooperative": 0.25,
    "hallucination": 0.0,
}
"""Label -> stored reward."""
MOST_WORDS = 75
EMPTY = ("", "[]")  # what stands in the audit where nothing was said yet
TEST, VALIDATION = 80, 60  # prompts

VARIANTS: Variants = {
    "a_lol_3_epochs": ("a_lol", {"policy__epochs": 3.0}),
    "nll_filtered": ("nll", {"policy__filter": "kept"}),
}
"""As many steps as on all rows; the filter without the weights."""

AUDIT = flags.DEFINE_string("audit", None, "The labelled answers, JSON lines.")


def answers_of(where: str, row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Yield the answers of a row of the audit, in FaithDial's form.

    Raises:
        UserError: a field is missing or malformed, or a label is unknown.
    """
    knowledge = fields.field(where, row, "knowledge", str)
    history = fields.elements(where, row, "history", str)
    columns = [fields.elements(where, row, name, str) for name in ("responses", "begin", "writer")]
    if len(set(map(len, columns))) > 1:
        raise UserError(f"{where}: not as many labels or writers as responses")
    for response, label, writer in zip(*columns, strict=True):
        if label not in REWARDS:
            raise UserError.unknown(f"{where}: no label {label!r}", label, REWARDS)
        yield {
            "knowledge": knowledge,
            "history": list(history),
            "response": response,
            "BEGIN": [label],
            "reward": REWARDS[label],
            "writer": writer,
        }


def by_prompt(audit: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the answers to each prompt that is not a first turn.

    Raises:
        UserError: the file is missing or malformed.
    """
    prompts: dict[str, list[dict[str, Any]]] = {}
    for where, row in read_listed(str(audit)):
        for answer in answers_of(where, row):
            prompt = " ".join((answer["knowledge"], *answer["history"]))
            if any(turn.strip() not in EMPTY for turn in answer["history"]):
                prompts.setdefault(prompt, []).append(answer)
    return prompts


def short(prompt: str) -> bool:
    """Whether a prompt is for training and testing policies."""
    return len(prompt.split()) <= MOST_WORDS


def split(audit: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the answers of each split, those of a prompt together.

    Raises:
        UserError: the file is missing or malformed, or too few prompts are short enough.
    """
    prompts = {prompt: found for prompt, found in by_prompt(audit).items() if short(prompt)}
    if len(prompts) <= TEST + VALIDATION:
        raise UserError(
            f"--audit={audit}: {len(prompts)} prompts of at most {MOST_WORDS} words, which leaves "
            f"none to train on after {TEST} test and {VALIDATION} validation prompts"
        )
    order = sorted(prompts, key=lambda prompt: hashlib.blake2b(prompt.encode()).digest())
    parts = {
        "test": order[:TEST],
        "validation": order[TEST : TEST + VALIDATION],
        "train": order[TEST + VALIDATION :],
    }
    return {name: [a for prompt in part for a in prompts[prompt]] for name, part in parts.items()}


def write_rows(audit: Path, folder: Path) -> dict[str, tuple[str]]:
    """Write a file for each split; return what ``config.task`` is to say of them."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {}
    for name, answers in split(audit).items():
        file = folder / f"{name}.jsonl"
        lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        file.write_text("".join(lines), encoding="utf-8")
        named[f"task.{name}_files"] = (str(file),)
    return named


def main(_):
    if not AUDIT.value:
        raise UserError("--audit is needed: the file of labelled answers")
    wanted = asked(CONFIG, NAMES, range(5))
    rows = write_rows(Path(AUDIT.value), wanted.workdir / "rows")
    wanted = wanted._replace(overrides={**wanted.overrides, **rows})
    configs = {name: wanted.config(name) for name in wanted.objectives}
    configs |= wanted.variants(VARIANTS)
    train(wanted, configs, wanted.workdir, wanted.seeds)
    say(f"done: {wanted.workdir}; python -m benchmarks.evidence.draw collects and draws it")


if __name__ == "__main__":
    entry(connected(main))
