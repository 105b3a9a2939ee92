"""Your own data: rows of a prompt, its response or responses, and optionally their rewards.

`forms` has the forms that a row may have, `listed` the files, folders and data sets that can be
named. Every row may also have ``source``, where it is from (default: the file's stem), and ``id``,
a text or a whole number (default: file and position). Rows with the same prompt become one example
with all their responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alol_jax.errors import UserError, format_names
from alol_jax.tables.columns import Texts, first_shared
from alol_jax.tables.table import Table, concatenate
from alol_jax.tasks import listed, sources, turns, weights
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.bad_rows import BadRows
from alol_jax.tasks.reading import FIELDS, OF_EVERY_FORM, Found, check_both_or_neither, read
from alol_jax.tasks.renaming import Renaming
from alol_jax.tasks.text_rewards import NOVELTY, TEXT_REWARDS
from alol_jax.types import Example, Progress, Splits, Task, unseen

FORMER = "jsonl"  # name of this task


def load(options: Any, progress: Progress = unseen) -> Splits:
    """Read the files named in the options.

    Args:
      options: ``train_file``, ``validation_file``, ``test_file`` (see `listed`; if the last two are
        empty, ``train_file`` is split by prompt), ``validation`` and ``test`` (numbers of prompts,
        used only for that split), ``limit`` (training examples; 0 for all), ``columns`` (see
        `renaming`), ``bad_rows`` and ``bad_share`` (see `bad_rows`).
      progress: shows how much of a big file has been read.

    Raises:
      UserError: a file is missing, unreadable or empty; a row is malformed (names file, line and
        field); only some rows have rewards; a prompt is in two files.
    """
    named = _named(options)
    read_rows, notes = _read(named, options, progress)
    often = [one for one in read_rows["train_file"] if one[0].weight > 1]
    files = {key: concatenate([table for _, table in these]) for key, these in read_rows.items()}
    del read_rows
    rows = sum(map(len, files.values()))
    for key in files:  # in place, so that no more than one file is held twice
        files[key] = splitting.group_by_prompt(files[key], files[key]["prompt"])
    joined = rows - sum(map(len, files.values()))
    if options.name == FORMER:
        notes.insert(0, f"task.name={FORMER!r} is the former name of {OWN.name!r}.")
    if joined:
        notes.append(f"{joined} of {rows} rows joined to an earlier row with the same prompt.")
    if len(named) == 1:
        splits = splitting.split_by_prompt(
            files.pop("train_file"), validation=options.validation, test=options.test
        )
    else:
        _check_no_overlap(files, {key: options[key] for key in named})
        splits = Splits(*(files[f"{name}_file"] for name in ("train", "validation", "test")), ())
    splits = splitting.limit_train(
        Splits(splits.train, splits.validation, splits.test, tuple(notes)), options.limit
    )
    if not often:
        return splits
    notes = list(splits.notes)
    train = weights.repeated(splits.train, often, notes)
    return Splits(train, splits.validation, splits.test, tuple(notes))


def _read(
    named: Mapping[str, list[listed.Source]], options: Any, progress: Progress
) -> tuple[dict[str, list[tuple[listed.Source, Table[Example]]]], list[str]]:
    """Read all sources: key of ``config.task`` -> the rows of each, and notes."""
    renaming = Renaming.of(options.columns, (*FIELDS, *OF_EVERY_FORM))
    found, files, more = Found(), {}, []
    first: tuple[str, bool] | None = None
    for key, those in named.items():
        bad, tables = BadRows(options.bad_rows, options.bad_share), []
        for number, source in enumerate(those, start=1):
            prefix = f"{key}:" if len(those) == 1 else f"{key}:{number}:"
            one = read(source, prefix, renaming, bad, found, progress)
            tables.append((source, weights.shared(source, one.examples, more)))
            more += [one.note] if one.note else []
            if len(one.examples):
                here = (one.first, bool(one.examples["rewards"].lengths[0]))
                first = first or here
                check_both_or_neither(first, here)
        if len(those) > 1:
            more.append(f"task.{key}: {len(those)} read: {format_names([s.name for s in those])}.")
        files[key] = tables
        bad.check(key, sum(len(table) for _, table in tables))
        more += bad.notes()
    return files, [*found.notes(), *more]


def files(options: Any) -> tuple[Path, ...]:
    """Return the local files that ``load`` reads."""
    each = (source for those in _named(options).values() for source in those)
    return tuple(sources.on_disk(source.path) for source in each if not source.on_hub)


def _named(options: Any) -> dict[str, list[listed.Source]]:
    """Key of ``config.task`` -> the sources it names."""
    if not options.train_file:
        raise UserError("task.train_file is empty: name a data file")
    if bool(options.validation_file) != bool(options.test_file):
        raise UserError(
            "task.validation_file and task.test_file go together: name both, or neither to split "
            "task.train_file by prompt"
        )
    keys = ("train_file", "validation_file", "test_file") if options.test_file else ("train_file",)
    return {key: listed.sources_of(key, options[key]) for key in keys}


def _check_no_overlap(files: Mapping[str, Table[Example]], paths: Mapping[str, str]) -> None:
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


OWN = Task(
    name="own",
    load=load,
    files=files,
    template="{prompt}",
    stop=(),
    rewards=(*TEXT_REWARDS, NOVELTY),
    turns=turns.turns_of,
    messages=turns.messages_of,
)
