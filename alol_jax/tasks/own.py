"""Your own data: rows of a prompt, its response or responses, and optionally their rewards.

JSON lines, or CSV, Parquet, Arrow or a data set of tensorflow-datasets (`tfds_source`) with the
same fields:

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.columns import Ragged, Texts, first_shared
from alol_jax.tables.table import Table
from alol_jax.tasks import columnar, fields, sources
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.text_rewards import TEXT_REWARDS
from alol_jax.types import Example, Splits, Task

KINDS = {
    "prompt": str,
    "response": str,
    "responses": list[str],
    "reward": float,
    "rewards": list[float],
    "source": str,
}
"""Field -> what it holds; ``id`` may hold either of two."""
FIELDS = (*KINDS, "id")


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
    _check_rewards(files, paths)
    rows = sum(map(len, files.values()))
    for key in files:  # in place, so that no more than one file is held twice
        files[key] = splitting.group_by_prompt(files[key], files[key]["prompt"])
    joined = rows - sum(map(len, files.values()))
    notes = [f"Field {name!r} of {count} rows is not read." for name, count in ignored.items()]
    if joined:
        notes.append(f"{joined} of {rows} rows joined to an earlier row with the same prompt.")
    if len(paths) == 1:
        splits = splitting.split_by_prompt(
            files.pop("train_file"), validation=options.validation, test=options.test
        )
    else:
        _check_no_overlap(files, paths)
        splits = Splits(*(files[f"{name}_file"] for name in ("train", "validation", "test")), ())
    return splitting.limit_train(
        Splits(splits.train, splits.validation, splits.test, tuple(notes)), options.limit
    )


def _paths(options: Any) -> dict[str, Path]:
    if not options.train_file:
        raise UserError("task.train_file is empty: name a data file")
    if bool(options.validation_file) != bool(options.test_file):
        raise UserError(
            "task.validation_file and task.test_file go together: name both, or neither to split "
            "task.train_file by prompt"
        )
    keys = ("train_file", "validation_file", "test_file") if options.test_file else ("train_file",)
    return {key: Path(options[key]) for key in keys}


def _read(key: str, path: Path, ignored: collections.Counter[str]) -> Table[Example]:
    """Read a file's rows: by whole columns, and row by row where these do not fit."""
    source = sources.stem(path)
    try:
        counts, examples = _by_columns(key, path, source)
    except columnar.Irregular:
        counts = collections.Counter()
        examples = Table.of(_by_rows(key, path, source, counts), Example)
    if not len(examples):
        raise UserError(f"{path}: the file has no rows")
    ignored.update({name: count for name, count in counts.items() if name not in FIELDS})
    return examples


def _by_columns(key: str, path: Path, source: str) -> tuple[dict[str, int], Table[Example]]:
    """Read the file by columns: how many rows have each field, and the examples.

    Raises:
      Irregular: the rows have different fields, or something is wrong with one: `_by_rows` says
        what.
    """
    raw = columnar.read(path, KINDS | _kind_of_id(path))
    counts = columnar.filled(raw)
    if columnar.whole_numbers(raw, "id"):
        raw = columnar.as_texts(raw, "id")
    prompts = columnar.texts(raw, "prompt")
    responses = _one_each(columnar.texts(raw, "response"), columnar.text_lists(raw, "responses"))
    if prompts is None or responses is None:
        raise columnar.Irregular("no prompt or no response")
    rewards = _one_each(columnar.numbers(raw, "reward"), columnar.number_lists(raw, "rewards"))
    if rewards is None:
        rewards = Ragged.empty(len(prompts), np.float64)
    elif (rewards.lengths != responses.lengths).any():
        raise columnar.Irregular("other numbers of rewards than of responses")
    if not all(map(str.strip, prompts)) or not all(map(str.strip, responses.flat)):
        raise columnar.Irregular("an empty text")
    columns = {
        "id": columnar.texts(raw, "id", Texts.numbered(f"{key}:", len(prompts))),
        "prompt": prompts,
        "responses": responses,
        "source": columnar.texts(raw, "source", Texts.repeated(source, len(prompts))),
        "rewards": rewards,
    }
    return counts, Table(Example, columns)


def _kind_of_id(path: Path) -> dict[str, type]:
    """What the field ``id`` of JSON lines holds, by the first row: text or a whole number."""
    if sources.form_of(path) != "json lines":
        return {}  # such files say it themselves
    try:
        _, row = next(sources.read_file(path))
    except (StopIteration, UserError) as error:
        raise columnar.Irregular("no first row") from error
    kind = type(row.get("id"))
    return {"id": kind} if kind in (str, int) else {}


def _one_each(one: Texts | np.ndarray | None, many: Ragged | None) -> Ragged | None:
    """The values of the singular or the plural field, as lists."""
    if one is not None and many is not None:
        raise columnar.Irregular("both forms of a field")
    return many if one is None else Ragged.one_each(one)


def _by_rows(
    key: str, path: Path, source: str, counts: collections.Counter[str]
) -> Iterator[Example]:
    """Yield the examples of the file, and count how many rows have each field."""
    first: tuple[str, bool] | None = None
    for number, (where, row) in enumerate(sources.read_file(path), start=1):
        counts.update(name for name in row if fields.has(row, name))
        example = _example(where, row, f"{key}:{number}", source)
        here = (where, bool(example.rewards))
        first = first or here
        _check_both_or_neither(first, here)
        yield example


def _example(where: str, row: Mapping[str, Any], row_id: str, source: str) -> Example:
    prompt = fields.field(where, row, "prompt", str)
    if not prompt.strip():
        raise UserError(f"{where}, field 'prompt': the prompt is empty")
    responses = _one_or_many(where, row, "response", "responses", str)
    for number, response in enumerate(responses, start=1):
        if not response.strip():
            raise UserError(f"{where}: response {number} of {len(responses)} is empty")
    rewards: tuple[float, ...] = ()
    if fields.has(row, "reward") or fields.has(row, "rewards"):
        rewards = _one_or_many(where, row, "reward", "rewards", float)
        if len(rewards) != len(responses):
            raise UserError(f"{where}: {len(rewards)} rewards for {len(responses)} responses")
    return Example(_id(where, row, row_id), prompt, responses, _source(where, row, source), rewards)


def _one_or_many(
    where: str, row: Mapping[str, Any], one: str, many: str, kind: type
) -> tuple[Any, ...]:
    """Return the values of the singular or the plural field; at least one."""
    if fields.has(row, one) and fields.has(row, many):
        raise UserError(f"{where}: has both {one!r} and {many!r}; keep one of them")
    if not fields.has(row, many):
        return (fields.field(where, row, one, kind),)
    values = fields.elements(where, row, many, kind)
    if not values:
        raise UserError(f"{where}, field {many!r}: the list is empty")
    return values


def _id(where: str, row: Mapping[str, Any], default: str) -> str:
    if not fields.has(row, "id"):
        return default
    if isinstance(row["id"], int):
        return str(fields.field(where, row, "id", int))
    return fields.field(where, row, "id", str)


def _source(where: str, row: Mapping[str, Any], default: str) -> str:
    return fields.field(where, row, "source", str) if fields.has(row, "source") else default


def _check_rewards(files: Mapping[str, Table[Example]], paths: Mapping[str, Path]) -> None:
    """Check that all files have rewards, or none; that all rows of a file do is known."""
    has = {key: bool(examples["rewards"].lengths[0]) for key, examples in files.items()}
    for key in files:
        if has[key] != has["train_file"]:
            places = [next(sources.read_file(paths[name]))[0] for name in ("train_file", key)]
            _check_both_or_neither((places[0], has["train_file"]), (places[1], has[key]))


def _check_both_or_neither(one: tuple[str, bool], other: tuple[str, bool]) -> None:
    """Check that two rows, (place, whether it has a reward), are alike."""
    if one[1] != other[1]:
        with_reward, without = (one[0], other[0]) if one[1] else (other[0], one[0])
        raise UserError(
            f"{without}: no field 'reward', but {with_reward} has one; give all rows a reward, "
            "or none and score them"
        )


def _check_no_overlap(files: Mapping[str, Table[Example]], paths: Mapping[str, Path]) -> None:
    """Check that no normalised prompt is in two files."""
    keys = list(files)
    names = [Texts.of(list(map(splitting.normalise, files[key]["prompt"]))) for key in keys]
    shared = first_shared(names)
    if shared is not None:
        key, other = keys[shared[0]], keys[shared[2]]
        example = files[key][shared[1]]
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
    files=lambda options: tuple(map(sources.on_disk, _paths(options).values())),
    template="{prompt}",
    stop=(),
    rewards=TEXT_REWARDS,
)
