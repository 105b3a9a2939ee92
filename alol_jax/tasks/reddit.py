"""Reddit: answers to comments, from Kaggle's "Reddit comment score prediction" data.

Two CSV files, of upvoted and of downvoted comments, with the columns ``id``, ``text`` and
``parent_text`` (others are not read). The prompt is the parent, the response the comment. A text
that pandas reads as a missing value, like "NA", "None" or "null", is none: so the published code
saw it, too.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.table import Table, concatenate
from alol_jax.tasks import fields, sources
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.text_rewards import TEXT_REWARDS
from alol_jax.types import Example, Progress, Splits, Task, unseen

Counts = collections.Counter[str]

SIGNS = ("positive", "negative")
END = "<|endoftext|>"
COLUMNS = ("id", "text", "parent_text")
SEED = 901  # of the sample, as published
_URL = re.compile(r"https?://\S+")


class Comment(NamedTuple):
    """A row of the data."""

    id: str
    parent: str
    text: str


def load(options: Any, progress: Progress = unseen) -> Splits:
    """Read both files; train on the comments of one sign, validate and test on both.

    Of each file, rows without a text or parent are dropped, then ``sample`` rows are drawn, then
    rows are filtered and cleaned. The first ``test`` of them are test rows, the next ``validation``
    validation rows, the rest of the chosen sign training rows.

    Args:
      options: ``positive_file``, ``negative_file``, ``sign`` ("positive" or "negative"),
        ``sample`` (rows of each file, 0 for all), ``max_words`` (of a comment and of its parent),
        ``validation`` and ``test`` (rows of each sign), ``limit`` (training prompts, 0 for all).

    Raises:
      UserError: a file is missing, unreadable or lacks a column; no row is left for training.
    """
    del progress  # `datasets` opens its files
    if options.sign not in SIGNS:
        raise UserError.unknown(f"task.sign={options.sign!r}", options.sign, SIGNS)
    for name, least in (("validation", 1), ("test", 1), ("sample", 0)):
        if options[name] < least:
            raise UserError(
                f"task.{name} is {options[name]}: expected rows of each sign, {least} or more"
            )
    for key in ("positive_file", "negative_file"):
        sources.check_published(key, options[key])
    counts: Counts = collections.Counter()
    parts: dict[str, list[Table[Example]]] = {"train": [], "validation": [], "test": []}
    for sign, path in zip(SIGNS, files(options), strict=True):
        rows = Table.of(_examples(sign, path, options, counts), Example)
        held_out, trains = options.test + options.validation, sign == options.sign
        if len(rows) < held_out + trains:
            faults = "".join(f"; {what}: {count}" for what, count in counts.items() if sign in what)
            raise UserError(
                f"{path}: {len(rows)} rows are left{faults}: too few for "
                f"task.test={options.test}, task.validation={options.validation}"
                f"{' and training' * trains}: lower these"
            )
        parts["test"].append(rows[: options.test])
        parts["validation"].append(rows[options.test : held_out])
        if trains:
            parts["train"].append(rows[held_out:])
    joined = {name: concatenate(tables) for name, tables in parts.items()}
    grouped = {
        name: splitting.group_by_prompt(table, table["prompt"]) for name, table in joined.items()
    }
    notes = tuple(f"{what}: {count}." for what, count in counts.items() if count)
    return splitting.limit_train(
        splitting.held_apart(Splits(**grouped, notes=notes)), options.limit
    )


def files(options: Any) -> tuple[Path, ...]:
    """Return the files that ``load`` reads: of upvoted, then of downvoted comments."""
    for sign in SIGNS:
        if not options[f"{sign}_file"]:
            raise UserError(f"task.{sign}_file is empty: name comments_{sign}.csv")
    return Path(options.positive_file), Path(options.negative_file)


def clean(text: str) -> str:
    """Collapse whitespace, and replace addresses on the web by ``<URL>``."""
    return _URL.sub("<URL>", " ".join(text.split()))


def _examples(sign: str, path: Path, options: Any, counts: Counts) -> Iterator[Example]:
    """Yield the usable examples of a sample of a file, in the order of the sample."""
    comments, seen = list(_comments(sign, path, counts)), set()
    for place in _sample(len(comments), options.sample):
        comment = comments[place]
        fault = _fault(comment, options.max_words)
        if not fault and comment.id in seen:
            fault = "whose id is that of an earlier one"
        if fault:
            counts[f"Dropped {sign} rows {fault}"] += 1
            continue
        seen.add(comment.id)
        name = f"{sign}:{comment.id}"
        yield Example(name, clean(comment.parent), (clean(comment.text),), sign)


def _comments(sign: str, path: Path, counts: Counts) -> Iterator[Comment]:
    """Yield the rows that have both texts."""
    for where, row in sources.read_file(path, texts=COLUMNS):
        _check_columns(where, row)
        if not (fields.has(row, "text") and fields.has(row, "parent_text")):
            counts[f"Dropped {sign} rows without a text or a parent"] += 1
            continue
        texts = (fields.field(where, row, column, str) for column in ("parent_text", "text"))
        yield Comment(str(row["id"]), *texts)


def _check_columns(where: str, row: Mapping[str, Any]) -> None:
    absent = [name for name in COLUMNS if name not in row]
    if absent:
        raise UserError(
            f"{where}: no column {', '.join(absent)}; expected those of Kaggle's data: id, text, "
            "parent_text"
        )


def _sample(rows: int, size: int) -> np.ndarray:
    """The places of a random sample, as pandas' ``DataFrame.sample`` draws it."""
    if not 0 < size < rows:
        return np.arange(rows)
    return np.random.RandomState(SEED).choice(rows, size=size, replace=False)


def _fault(comment: Comment, max_words: int) -> str:
    for text in comment[1:]:
        words = len(text.split())
        if not words:
            return "with an empty text or parent"
        if words > max_words:
            return f"with a text or parent of more than {max_words} words"
        if END in text:
            return f"with {END} in a text"
    return ""


REDDIT = Task(
    name="reddit",
    load=load,
    files=files,
    template="{prompt}" + END,
    stop=(),
    rewards=TEXT_REWARDS,
)
