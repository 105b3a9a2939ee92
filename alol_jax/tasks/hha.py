"""Helpful and Harmless Assistant: the paper's main data, two responses per conversation.

Reads the published rows (PRO's data.zip: hh_train_len2, hh_dev, hh_test) and the transcripts of
Anthropic/hh-rlhf, from local files or from the Hugging Face hub (see `hha_rows`). The notes count
the rows that were dropped, and the faulty ones that were kept.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.table import Table
from alol_jax.tasks import conversation, fields, hha_rows, sources
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.text_rewards import TEXT_REWARDS
from alol_jax.types import Example, Progress, Splits, Task, unseen

Counts = collections.Counter[str]

KEYS = {"train": "train_files", "validation": "validation_files", "test": "test_files"}
"""Split -> its key of ``config.task``."""

ORIGIN = (
    "the published rows are in PRO's data.zip (github.com/AlibabaResearch/DAMO-ConvAI, folder PRO: "
    "hh_train_len2, hh_dev, hh_test) and, but for hh_train_len2, in the A-LoL repository"
)
SPLIT_NAMES = ("train", "dev", "valid", "validation", "test")  # such files are named by folder


def load(options: Any, progress: Progress = unseen) -> Splits:
    """Read the files named in the options. Every usable row becomes one example.

    Validation prompts are removed from the test set, because all published dev rows are also test
    rows; validation and test prompts are removed from the training set. Prompts are compared after
    `splits.normalise`.

    Args:
      options: ``train_files``, ``validation_files``, ``test_files`` (tuples of files, or of hub
        splits like "Anthropic/hh-rlhf:helpful-base:train"), ``bad_test_indices`` (a JSON file,
        {name of a test file: [rows to leave out, counted from 0]}; "" for none), ``validation``
        and ``test`` (without files for the split: how many prompts to split off from the training
        files; with files: how many rows to keep, equally from each source, 0 for all), ``limit``
        (training rows; 0 for all).
      progress: shows how much of a big file has been read.

    Raises:
      UserError: there is no training file; a file is missing, unreadable or empty; a row is of
        neither kind or has a malformed field; the bad rows do not match the test files.
    """
    _check_options(options)
    counts: Counts = collections.Counter()
    commits: list[str] = []
    bad = _bad_rows(options, counts)
    read = {
        split: Table.of(
            (
                example
                for name, label in _labelled(options[key])
                for example in _read(
                    split, name, label, bad if split == "test" else {}, counts, commits, progress
                )
            ),
            Example,
        )
        for split, key in KEYS.items()
    }
    splits = splitting.limit_train(_without_overlap(read, options, counts), options.limit)
    _count_remaining_faults(splits, counts)
    notes = (f"{what}: {count}." for what, count in counts.items() if count)
    return dataclasses.replace(splits, notes=(*commits, *notes, *splits.notes))


def files(options: Any) -> tuple[Path, ...]:
    """Return the local files that ``load`` reads."""
    _check_names(options)
    names = [name for key in KEYS.values() for name in options[key] if sources.is_file(name)]
    if options.bad_test_indices:
        names.append(options.bad_test_indices)
    return tuple(map(Path, names))


def _check_names(options: Any) -> None:
    for key in KEYS.values():
        names = options[key]
        if isinstance(names, str):
            raise UserError(f"task.{key} is a text: expected a tuple, ({names!r},)")
        if not all(isinstance(name, str) for name in names):
            raise UserError(f"task.{key} is {names!r}: expected names of files or hub datasets")


def _check_options(options: Any) -> None:
    _check_names(options)
    for key in KEYS.values():
        for name in options[key]:
            if sources.is_file(name) and not Path(name).is_file():
                if Path(name).is_dir():
                    raise UserError(f"task.{key}: {name}: is a folder: name its files; {ORIGIN}")
                raise UserError(f"task.{key}: {name}: no such file; {ORIGIN}; {sources.PREPARE}")
    if not options.train_files:
        raise UserError(
            "task.train_files is empty: name files, like ('data/hh_train_len2/train.json',), or "
            f"hub splits, like ('Anthropic/hh-rlhf:helpful-base:train',); {ORIGIN}"
        )
    for key in ("validation", "test"):
        if options[key] < 0:
            raise UserError(f"task.{key} is {options[key]}: expected a number, 0 or more")


def _bad_rows(options: Any, counts: Counts) -> dict[str, frozenset[int]]:
    """Return test file -> rows to leave out, counted from 0. Names match without suffixes."""
    if not options.bad_test_indices:
        return {}
    path = Path(options.bad_test_indices)
    if not path.is_file():
        raise UserError(
            f"task.bad_test_indices: {path}: no such file; the published one is "
            "data/hh_test/bad_test_indices.json of the A-LoL repository, and '' keeps all rows; "
            f"{sources.PREPARE}"
        )
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"task.bad_test_indices: {path}: cannot be read ({error})") from error
    if not isinstance(listed, dict):
        raise UserError(
            f'task.bad_test_indices: {path}: expected {{"harmless_base.json": [row numbers]}}'
        )
    local = {_stem(name): name for name in options.test_files if sources.is_file(name)}
    bad_rows = {}
    for name in listed:
        rows = fields.elements(str(path), listed, name, int)
        if _stem(name) in local:
            bad_rows[local[_stem(name)]] = frozenset(rows)
        else:
            counts[f"Rows in task.bad_test_indices of {name}, which is no test file"] += len(rows)
    if not bad_rows:
        raise UserError(
            f"task.bad_test_indices: {path}: none of its names ({', '.join(listed) or 'none'}) is "
            f"a file of task.test_files ({', '.join(local) or 'none'})"
        )
    return bad_rows


def _labelled(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, label) with a unique label, with which the ids of its rows begin."""
    sets = [_set_name(name) for name in names]
    for number, (name, label) in enumerate(zip(names, sets, strict=True), start=1):
        yield name, label if sets.count(label) == 1 else f"{label}.{number}"


def _read(
    split: str,
    name: str,
    label: str,
    bad_rows: Mapping[str, Collection[int]],
    counts: Counts,
    commits: list[str],
    progress: Progress,
) -> Iterator[Example]:
    """Yield the usable rows of a file or hub split, and note the commit of the latter."""
    bad = bad_rows.get(name, ())
    total = 0
    rows = sources.read_listed(name, commits.append, progress)
    for total, (where, raw) in enumerate(rows, start=1):
        row = hha_rows.read_row(where, raw)
        if bad and not hha_rows.is_published(raw):
            raise UserError(f"{where}: task.bad_test_indices is for published rows, this is none")
        if total - 1 in bad:
            counts["Left out test rows that task.bad_test_indices lists"] += 1
        elif isinstance(row, str):
            counts[f"Dropped {split} rows {row}"] += 1
        elif fault := _fault(split, row.responses):
            counts[f"Dropped {split} rows {fault}"] += 1
        else:
            folder = row.folder if split != "test" else ""
            source = _plain(folder) or _set_name(name)
            yield _example(split, f"{split}/{label}:{total}", source, row, counts)
    if not total:
        raise UserError(f"{name}: the file has no rows")
    beyond = sorted(row for row in bad if not 0 <= row < total)
    if beyond:
        raise UserError(
            f"task.bad_test_indices: row {beyond[0]} is not in {name}, which has rows 0 to "
            f"{total - 1}: is it the list of another file?"
        )


def _fault(split: str, responses: Sequence[str]) -> str | None:
    if split == "train" and any(text.endswith(":") for text in responses):
        return "with a response that ends with ':'"
    if split == "train" and not all(text.strip() for text in responses):
        return "with an empty response"
    if not any(text.strip() for text in responses):
        return "without a response"
    return None


def _example(split: str, row_id: str, source: str, row: hha_rows.Row, counts: Counts) -> Example:
    """Make an example of the row's distinct non-empty responses."""
    filled = [n for n, text in enumerate(row.responses) if text.strip()]
    kept = [n for n in filled if row.responses.index(row.responses[n]) == n]
    counts[f"Empty responses left out of {split} rows"] += len(row.responses) - len(filled)
    counts[f"Repeated responses left out of {split} rows"] += len(filled) - len(kept)
    counts[f"Shortened {split} rows, to the first paragraph of a turn"] += row.shortened
    return Example(
        id=row_id,
        prompt=conversation.prompt_of(row.turns),
        responses=tuple(row.responses[n] for n in kept),
        source=source,
        rewards=tuple(row.rewards[n] for n in kept) if row.rewards else (),
    )


def _without_overlap(read: Mapping[str, Table[Example]], options: Any, counts: Counts) -> Splits:
    """Return the three splits without shared prompts, in the sizes that the options give."""
    validation = set(map(splitting.normalise, read["validation"]["prompt"]))
    held_out = validation | set(map(splitting.normalise, read["test"]["prompt"]))
    test = splitting.without_prompts(read["test"], validation)
    train = splitting.without_prompts(read["train"], held_out)
    counts["Left out test rows whose prompt is a validation prompt"] = len(read["test"]) - len(test)
    counts["Dropped train rows whose prompt is a validation or test prompt"] = len(
        read["train"]
    ) - len(train)
    if not len(train):
        faults = "; ".join(f"{what}: {count}" for what, count in counts.items() if count)
        raise UserError(f"task.train_files: no row is left for training ({faults})")
    cut = splitting.split_by_prompt(
        train,
        validation=0 if options.validation_files else options.validation,
        test=0 if options.test_files else options.test,
    )
    kept = {
        "validation": _balanced(read["validation"], options.validation),
        "test": _balanced(test, options.test),
    }
    notes = [
        f"task.{split} kept {len(kept[split])} of {len(all_of_it)} {split} rows."
        for split, all_of_it in (("validation", read["validation"]), ("test", test))
        if len(kept[split]) < len(all_of_it)
    ]
    return Splits(
        train=cut.train,
        validation=kept["validation"] if options.validation_files else cut.validation,
        test=kept["test"] if options.test_files else cut.test,
        notes=tuple(notes),
    )


def _balanced(examples: Table[Example], count: int) -> Table[Example]:
    """Keep ``count`` examples, equally many per source, the first in hash order; 0 keeps all."""
    if not count:
        return examples
    order, source = splitting.in_hash_order(examples), examples["source"].codes()
    rank, seen = np.zeros(len(order), int), np.zeros(len(order), int)
    for place in order:  # the rank of an example among those of its source
        rank[place] = seen[source[place]]
        seen[source[place]] += 1
    chosen = order[np.argsort(rank[order], kind="stable")][:count]
    return examples.take(np.sort(chosen))


def _count_remaining_faults(splits: Splits, counts: Counts) -> None:
    """Count rows that stay but that some objective or reward cannot use."""
    rewards = splits.train["rewards"]
    counts["Train rows with one response only"] += int(
        np.sum(splits.train["responses"].lengths == 1)
    )
    counts["Train rows whose stored rewards are equal"] += sum(
        len({*row}) < len(row) for row in rewards
    )
    everywhere = (splits.train, splits.validation, splits.test)
    rows = sum(map(len, everywhere))
    without = sum(int(np.sum(one["rewards"].lengths == 0)) for one in everywhere)
    if without < rows:
        counts[f"Rows without stored rewards, of {rows}"] = without


def _stem(name: str) -> str:
    return Path(name).name.split(".")[0]


def _set_name(name: str) -> str:
    """Return the source name of a file or hub split.

    "Anthropic/hh-rlhf:helpful-rejection-sampled:test" -> "helpful_rejection";
    "hh_test/harmless_base.json" and "harmless-base/test.jsonl.gz" -> "harmless_base".
    """
    if sources.is_file(name):
        stem, folder = _stem(name), Path(name).parent.name
        words = folder if folder and stem in SPLIT_NAMES else stem
    else:
        words = name.split(":")[1] if name.count(":") == 2 else name.split(":")[0]
    return _plain(words.rpartition("/")[2])


def _plain(name: str) -> str:
    """Spell a source name as the published test files do."""
    return name.replace("-", "_").removesuffix("_sampled")


HHA = Task(
    name="hha",
    load=load,
    files=files,
    template=conversation.TEMPLATE,
    stop=conversation.STOP,
    rewards=TEXT_REWARDS,
    clean=conversation.clean,
    turns=conversation.turns_of,
)
