"""COMET: commonsense inferences, from the generated ATOMIC10X (West et al. 2022, arXiv 2110.07178).

A row of ``ATOMIC10X.jsonl`` has ``head``, ``relation``, ``tail``, ``split`` (train, val, test) and
``p_valid_model``, the critic's probability that the inference holds, which is its stored reward.
The test rows are those of ATOMIC-2020 (Hwang et al. 2021, arXiv 2010.05953), tab-separated without
a header: head, relation, tail, written by people. Prompts are

    <head> PersonX eats </head> <relation> xWant </relation> [GEN]

with a space at the end, and the tail is the response. All tails of a head and relation are
responses to one prompt.
"""

from __future__ import annotations

import collections
import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alol_jax.errors import UserError
from alol_jax.tables.table import Table
from alol_jax.tasks import fields, sources
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.text_rewards import TEXT_REWARDS
from alol_jax.types import Example, Progress, Splits, Task, unseen

Counts = collections.Counter[str]

PHRASES = {
    "HinderedBy": "can be hindered by",
    "xNeed": "but before, PersonX needed",
    "xWant": "as a result, PersonX wants",
    "xIntent": "because PersonX wanted",
    "xReact": "as a result, PersonX feels",
    "xAttr": "so, PersonX is seen as",
    "xEffect": "as a result, PersonX",
}
"""The seven relations of ATOMIC10X, and how the critic reads them."""

MARKS = ("<head>", "</head>", "<relation>", "</relation>", "[GEN]")
PROMPT = "<head> {head} </head> <relation> {relation} </relation> [GEN] "
_PROMPT = re.compile(r"<head> (.*) </head> <relation> (\w+) </relation> \[GEN\] ?", re.DOTALL)
_SPLITS = {"train": "train", "val": "validation", "test": "test"}

# The most common first names of the United States' census of 1990: ours, and drawn evenly.
NAMES = (
    "James John Robert Michael William David Richard Charles Joseph Thomas "
    "Mary Patricia Linda Barbara Elizabeth Jennifer Maria Susan Margaret Dorothy"
).split()
SEED = "901"  # of the names


def load(options: Any, progress: Progress = unseen) -> Splits:
    """Read the files named in the options.

    Training and validation rows are those of ATOMIC10X. Test rows are those of ``test_file``, or
    without one, ATOMIC10X's own. Examples whose prompt is in a later split are dropped.

    Args:
      options: ``train_file``, ``test_file`` ("" = ATOMIC10X's test rows), ``validation`` and
        ``test`` (prompts to keep, 0 for all), ``limit`` (training prompts, 0 for all).
      progress: shows how much of a big file has been read.

    Raises:
      UserError: a file is missing, unreadable or of another form; a split has no usable row.
    """
    for key in ("train_file", "test_file"):
        if options[key]:
            sources.check_published(key, options[key])
    counts: Counts = collections.Counter()
    read: dict[str, list[Example]] = {name: [] for name in _SPLITS.values()}
    kept = ("train", "val") if options.test_file else tuple(_SPLITS)
    for split, example in _generated(files(options)[0], kept, counts, progress):
        read[split].append(example)
    if options.test_file:
        read["test"] = list(_gold(Path(options.test_file), counts, progress))
    tables = {
        name: splitting.group_by_prompt(
            Table.of(examples, Example), [example.prompt for example in examples]
        )
        for name, examples in read.items()
    }
    for name in ("validation", "test"):
        tables[name] = splitting.first_prompts(tables[name], name, options[name])
    notes = tuple(f"{what}: {count}." for what, count in counts.items() if count)
    return splitting.limit_train(splitting.held_apart(Splits(**tables, notes=notes)), options.limit)


def files(options: Any) -> tuple[Path, ...]:
    """Return the files that ``load`` reads."""
    if not options.train_file:
        raise UserError("task.train_file is empty: name ATOMIC10X.jsonl")
    return tuple(Path(name) for name in (options.train_file, options.test_file) if name)


def _generated(
    path: Path, kept: Sequence[str], counts: Counts, progress: Progress
) -> Iterator[tuple[str, Example]]:
    """Yield (split, example) of the kept splits of ATOMIC10X, one tail each."""
    seen: dict[str, set[tuple[str, str]]] = {split: set() for split in kept}
    numbers: Counts = collections.Counter()
    for where, row in sources.read_file(path, progress=progress):
        stored = fields.field(where, row, "split", str)
        if stored not in _SPLITS:
            raise UserError(
                f"{where}: the split is {stored!r}: expected one of {', '.join(_SPLITS)}"
            )
        if stored not in kept:
            continue
        split = _SPLITS[stored]
        reward = fields.field(where, row, "p_valid_model", float)
        row_id = f"{split}:{numbers[split]}"
        example = _example(where, row, row_id, split, (reward,), counts, seen[stored])
        numbers[split] += 1
        if example is not None:
            yield split, example


def _gold(path: Path, counts: Counts, progress: Progress) -> Iterator[Example]:
    """Yield the examples of ATOMIC-2020, one tail each."""
    seen: set[tuple[str, str]] = set()
    rows = sources.read_tab_separated(path, ("head", "relation", "tail"), progress)
    for number, (where, row) in enumerate(rows):
        example = _example(where, row, f"test:{number}", "test", (), counts, seen)
        if example is not None:
            yield example


def _example(
    where: str,
    row: Mapping[str, Any],
    row_id: str,
    split: str,
    rewards: tuple[float, ...],
    counts: Counts,
    seen: set[tuple[str, str]],
) -> Example | None:
    """The example of a row; None for one that cannot be used, which is counted."""
    head, relation, tail = (
        fields.field(where, row, name, str) for name in ("head", "relation", "tail")
    )
    prompt = PROMPT.format(head=head.strip(), relation=relation)
    fault = ""
    if relation not in PHRASES:
        fault = "of a relation other than the seven"
    elif not head.strip() or not tail.strip():
        fault = "with an empty head or tail"
    elif any(mark in head for mark in MARKS):
        fault = "whose head contains a mark of the prompt"
    elif (prompt, tail) in seen:
        fault = "that repeat an earlier one"
    if fault:
        counts[f"Dropped {split} rows {fault}"] += 1
        return None
    seen.add((prompt, tail))
    return Example(row_id, prompt, (tail,), relation, rewards)


def pair(prompt: str, response: str) -> tuple[str, str]:
    """Return what the critic reads: the head, and the relation's phrase with the tail.

    PersonX and PersonY get two different first names. They are drawn from the prompt alone, so
    that all tails of a prompt are read with the same names.

    Raises:
      UserError: the prompt is not of this task.
    """
    found = _PROMPT.fullmatch(prompt)
    if found is None or found[2] not in PHRASES:
        raise UserError(f"{prompt!r} is no prompt of the task comet, with one of its relations")
    digest = hashlib.blake2b((SEED + prompt).encode("utf-8"), digest_size=8).digest()
    first, second = random.Random(int.from_bytes(digest, "big")).sample(NAMES, 2)
    texts = (found[1], f"{PHRASES[found[2]]} {response}")
    named = [text.replace("PersonX", first).replace("PersonY", second) for text in texts]
    return named[0], named[1]


COMET = Task(
    name="comet",
    load=load,
    files=files,
    template="{prompt}",
    stop=(".",),
    rewards=TEXT_REWARDS,
    pair=pair,
    marks=MARKS,
)
