"""Your own data: rows of a prompt, its response or responses, and optionally their rewards.

JSON lines, or CSV or Parquet with the same fields:

===========================  ==================================================================
``prompt``                   text
``response``/``responses``   text / list of texts
``reward``/``rewards``       number / list of numbers, one per response; all rows or none
``source``                   text, where the row is from; default: the file's stem
``id``                       text or whole number; default: file and position
===========================  ==================================================================

Rows with the same prompt become one example with all their responses.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.tasks import sources
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.text_rewards import TEXT_REWARDS
from alol_jax.types import Example, Splits, Task, UserError

FIELDS = ("prompt", "response", "responses", "reward", "rewards", "source", "id")


def load(options: Any) -> Splits:
    """Read the files named in the options.

    Args:
      options: ``train_file``, ``validation_file``, ``test_file`` (paths; if the last two are empty,
        ``train_file`` is split by prompt), ``validation`` and ``test`` (numbers of prompts, used
        only for that split), ``limit`` (training examples; 0 for all).

    Raises:
      UserError: a file is missing, unreadable or empty; a row is malformed (names file, line and
        field); only some rows have rewards; a prompt is in two files.
    """
    paths = _paths(options)
    ignored: collections.Counter[str] = collections.Counter()
    files = {key: _read(key, path, ignored) for key, path in paths.items()}
    _check_rewards(example for examples in files.values() for example in examples)
    grouped = {
        key: splitting.group_by_prompt((example for _, example in examples), str)
        for key, examples in files.items()
    }
    if len(paths) == 1:
        splits = splitting.split_by_prompt(
            grouped["train_file"], validation=options.validation, test=options.test
        )
    else:
        _check_no_overlap(grouped, paths)
        splits = Splits(
            grouped["train_file"], grouped["validation_file"], grouped["test_file"], notes=()
        )
    rows = sum(map(len, files.values()))
    joined = rows - sum(map(len, grouped.values()))
    notes = [f"Field {name!r} of {count} rows is not read." for name, count in ignored.items()]
    if joined:
        notes.append(f"{joined} of {rows} rows joined to an earlier row with the same prompt.")
    return splitting.limit_train(
        Splits(splits.train, splits.validation, splits.test, tuple(notes)), options.limit
    )


def _paths(options: Any) -> dict[str, Path]:
    if not options.train_file:
        raise UserError("task.train_file is empty: name a JSON lines file")
    if bool(options.validation_file) != bool(options.test_file):
        raise UserError(
            "task.validation_file and task.test_file go together: name both, or neither to split "
            "task.train_file by prompt"
        )
    keys = ("train_file", "validation_file", "test_file") if options.test_file else ("train_file",)
    return {key: Path(options[key]) for key in keys}


def _read(key: str, path: Path, ignored: collections.Counter[str]) -> list[tuple[str, Example]]:
    """Read a file's rows as (place, example)."""
    places, rows = [], []
    for where, row in sources.read_file(path):
        places.append(where)
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    names = collections.Counter(itertools.chain.from_iterable(rows))
    ignored.update({name: count for name, count in names.items() if name not in FIELDS})
    ids = [f"{key}:{number}" for number in range(1, len(rows) + 1)]
    source = path.name.split(".")[0]
    examples = _plain_examples(rows, ids, source)
    if examples is None:
        examples = [
            _example(where, row, row_id, source)
            for where, row, row_id in zip(places, rows, ids, strict=True)
        ]
    return list(zip(places, examples, strict=True))


def _plain_examples(
    rows: Sequence[Mapping[str, Any]], ids: Sequence[str], source: str
) -> list[Example] | None:
    """Convert rows of one response each, checked by whole columns.

    Returns:
      None if a row has other fields, or something is wrong with one: `_example` says what.
    """
    plain = {"prompt", "response", "reward"}
    if any(sources.has(row, name) for name in {*FIELDS} - plain for row in rows):
        return None
    prompts, responses, rewards = ([row.get(name) for row in rows] for name in sorted(plain))
    texts = [*prompts, *responses]
    if {*map(type, texts)} != {str} or not all(map(str.strip, texts)):
        return None
    kinds = {*map(type, rewards)}
    try:
        "".join(texts).encode("utf-8")  # a lone surrogate cannot be encoded
        finite = kinds <= {int, float} and np.isfinite(np.array(rewards, np.float64)).all()
    except (UnicodeEncodeError, OverflowError):
        return None
    if not finite and kinds != {type(None)}:
        return None
    stored = [(float(reward),) for reward in rewards] if finite else [()] * len(rows)
    return [
        Example(row_id, prompt, (response,), source, reward)
        for row_id, prompt, response, reward in zip(ids, prompts, responses, stored, strict=True)
    ]


def _example(where: str, row: Mapping[str, Any], row_id: str, source: str) -> Example:
    prompt = sources.field(where, row, "prompt", str)
    if not prompt.strip():
        raise UserError(f"{where}, field 'prompt': the prompt is empty")
    responses = _one_or_many(where, row, "response", "responses", str)
    for number, response in enumerate(responses, start=1):
        if not response.strip():
            raise UserError(f"{where}: response {number} of {len(responses)} is empty")
    rewards: tuple[float, ...] = ()
    if sources.has(row, "reward") or sources.has(row, "rewards"):
        rewards = _one_or_many(where, row, "reward", "rewards", float)
        if len(rewards) != len(responses):
            raise UserError(f"{where}: {len(rewards)} rewards for {len(responses)} responses")
    return Example(_id(where, row, row_id), prompt, responses, _source(where, row, source), rewards)


def _one_or_many(
    where: str, row: Mapping[str, Any], one: str, many: str, kind: type
) -> tuple[Any, ...]:
    """Return the values of the singular or the plural field; at least one."""
    if sources.has(row, one) and sources.has(row, many):
        raise UserError(f"{where}: has both {one!r} and {many!r}; keep one of them")
    if not sources.has(row, many):
        return (sources.field(where, row, one, kind),)
    values = sources.elements(where, row, many, kind)
    if not values:
        raise UserError(f"{where}, field {many!r}: the list is empty")
    return values


def _id(where: str, row: Mapping[str, Any], default: str) -> str:
    if not sources.has(row, "id"):
        return default
    if isinstance(row["id"], int):
        return str(sources.field(where, row, "id", int))
    return sources.field(where, row, "id", str)


def _source(where: str, row: Mapping[str, Any], default: str) -> str:
    return sources.field(where, row, "source", str) if sources.has(row, "source") else default


def _check_rewards(placed: Iterable[tuple[str, Example]]) -> None:
    """Check that all rows have rewards, or none."""
    first: tuple[str, bool] | None = None
    for where, example in placed:
        has = bool(example.rewards)
        if first is None:
            first = (where, has)
        elif has != first[1]:
            with_reward, without = (where, first[0]) if has else (first[0], where)
            raise UserError(
                f"{without}: no field 'reward', but {with_reward} has one; give all rows a reward, "
                "or none and score them"
            )


def _check_no_overlap(grouped: Mapping[str, Iterable[Example]], paths: Mapping[str, Path]) -> None:
    """Check that no normalised prompt is in two files."""
    owner: dict[str, str] = {}
    for key, examples in grouped.items():
        for example in examples:
            other = owner.setdefault(splitting.normalise(example.prompt), key)
            if other != key:
                raise UserError(
                    f"{paths[key]}: the prompt {_short(example.prompt)} (id {example.id}) is in "
                    f"{paths[other]} too; take it out of one of them, or empty "
                    "task.validation_file and task.test_file to split by prompt"
                )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


JSONL = Task(
    name="jsonl",
    load=load,
    files=lambda options: tuple(_paths(options).values()),
    template="{prompt}",
    stop=(),
    rewards=TEXT_REWARDS,
)
