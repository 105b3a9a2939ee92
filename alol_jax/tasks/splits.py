"""Splitting by prompt: a pure function of the prompts, independent of row order."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table
from alol_jax.types import Example, Splits

_PUNCTUATION_AT_THE_ENDS = re.compile(r"^\W+|\W+$")


def normalise(prompt: str) -> str:
    """Casefold, collapse whitespace, and strip punctuation at both ends.

    A prompt of only punctuation keeps it, so that "?" and "!" remain different prompts.
    """
    collapsed = " ".join(prompt.casefold().split())
    return _PUNCTUATION_AT_THE_ENDS.sub("", collapsed) or collapsed


def group_by_prompt(examples: Table[Example], names: Iterable[str]) -> Table[Example]:
    """Merge examples with the same name into one with all their responses.

    The first gives the id, the wording and the source. Keeps the order of first occurrence.

    Args:
      names: one per example: its prompt, as it is or normalised.
    """
    codes = Texts.of(names if isinstance(names, Sequence) else list(names)).codes()
    count = int(codes.max(initial=-1)) + 1
    if count == len(examples):
        return examples
    order = np.argsort(codes, kind="stable")
    first = order[np.searchsorted(codes[order], np.arange(count))]

    def joined(column: Ragged) -> Ragged:
        lengths = np.bincount(codes, weights=column.lengths, minlength=count)
        return Ragged.of(column.take(order).flat, lengths.astype(np.int64))

    return examples.take(first).replace(
        responses=joined(examples["responses"]), rewards=joined(examples["rewards"])
    )


def split_by_prompt(examples: Table[Example], *, validation: int, test: int) -> Splits:
    """Split by BLAKE2b of the normalised prompt. No normalised prompt is in two splits.

    The ``test`` prompts with the smallest hashes form the test split, the next ``validation``
    prompts the validation split, and all others the training split. Every split is in hash order.

    Raises:
      UserError: a count is negative, or no prompt is left for training.
    """
    for name, count in (("validation", validation), ("test", test)):
        if count < 0:
            raise UserError(f"task.{name} is {count}: expected a number of prompts, 0 or more")
    order, rank = _hash_order(examples)
    prompts = int(rank[-1]) + 1 if len(rank) else 0
    if prompts <= validation + test:
        raise UserError(
            f"the data has {prompts} different prompts, which leaves none for training after "
            f"task.test={test} and task.validation={validation}: lower these"
        )
    first, second = np.searchsorted(rank, [test, test + validation])
    return Splits(
        train=examples.take(order[second:]),
        validation=examples.take(order[first:second]),
        test=examples.take(order[:first]),
        notes=(),
    )


def without_prompts(examples: Table[Example], prompts: Collection[str]) -> Table[Example]:
    """Leave out the examples whose normalised prompt is in ``prompts``."""
    names = map(normalise, examples["prompt"])
    return examples.where(np.fromiter((name not in prompts for name in names), bool))


def held_apart(splits: Splits) -> Splits:
    """Drop test examples whose prompt is a validation prompt, then training examples whose prompt
    is either, and count both in the notes. Prompts are compared after `normalise`."""
    validation = set(map(normalise, splits.validation["prompt"]))
    test = without_prompts(splits.test, validation)
    held_out = validation | set(map(normalise, test["prompt"]))
    train = without_prompts(splits.train, held_out)
    notes = list(splits.notes)
    for dropped, what in (
        (len(splits.test) - len(test), "test prompts that are validation prompts"),
        (len(splits.train) - len(train), "train prompts that are validation or test prompts"),
    ):
        if dropped:
            notes.append(f"Dropped {what}: {dropped}.")
    return Splits(train, splits.validation, test, tuple(notes))


def first_prompts(examples: Table[Example], name: str, count: int) -> Table[Example]:
    """Keep ``count`` examples, the first in hash order, in the order of the data; 0 keeps all.

    Raises:
      UserError: the count, ``task.<name>``, is negative.
    """
    if count < 0:
        raise UserError(f"task.{name} is {count}: expected a number of prompts, or 0 for all")
    if not 0 < count < len(examples):
        return examples
    return examples.take(np.sort(in_hash_order(examples)[:count]))


def limit_train(splits: Splits, limit: int) -> Splits:
    """Keep the first ``limit`` training examples in hash order; 0 keeps all, in their order.

    Raises:
      UserError: the limit is negative.
    """
    if limit < 0:
        raise UserError(f"task.limit is {limit}: expected a number of examples, or 0 for all")
    if limit == 0 or limit >= len(splits.train):
        return splits
    note = f"task.limit kept {limit} of {len(splits.train)} training examples."
    kept = splits.train.take(in_hash_order(splits.train)[:limit])
    return dataclasses.replace(splits, train=kept, notes=(*splits.notes, note))


def in_hash_order(examples: Table[Example]) -> np.ndarray:
    """Return the places of the examples by hash of the normalised prompt, then by prompt,
    responses and id: i64[N]."""
    return _hash_order(examples)[0]


def _hash_order(examples: Table[Example]) -> tuple[np.ndarray, np.ndarray]:
    """The places of the examples in hash order, and the rank of the prompt at each of them."""
    prompts = examples["prompt"]
    hashes = np.fromiter((_hash(normalise(prompt)) for prompt in prompts), "S16", len(prompts))
    high, low = hashes.view(">u8").reshape(-1, 2).astype(np.uint64).T
    order = np.lexsort((low, high))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    ends = np.append(np.flatnonzero(new), len(order))
    for run in np.flatnonzero(np.diff(ends) > 1):
        same = order[ends[run] : ends[run + 1]]
        order[ends[run] : ends[run + 1]] = sorted(
            same.tolist(), key=lambda n: _wording(examples[n])
        )
    return order, np.cumsum(new) - 1


def _wording(example: Example) -> tuple:
    return example.prompt, example.responses, example.id


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
