"""Splitting by prompt: a pure function of the prompts, independent of row order."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import operator
import re
from collections.abc import Callable, Iterable, Sequence

from alol_jax.types import Example, Splits, UserError

_PUNCTUATION_AT_THE_ENDS = re.compile(r"^\W+|\W+$")


def normalise(prompt: str) -> str:
    """Casefold, collapse whitespace, and strip punctuation at both ends.

    A prompt of only punctuation keeps it, so that "?" and "!" remain different prompts.
    """
    collapsed = " ".join(prompt.casefold().split())
    return _PUNCTUATION_AT_THE_ENDS.sub("", collapsed) or collapsed


def group_by_prompt(examples: Iterable[Example], key: Callable[[str], str]) -> tuple[Example, ...]:
    """Merge examples whose prompts have the same ``key`` into one with all their responses.

    The first gives the id, the wording and the source. Keeps the order of first occurrence.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(key(example.prompt), []).append(example)
    return tuple(
        group[0]
        if len(group) == 1
        else dataclasses.replace(
            group[0],
            responses=tuple(text for one in group for text in one.responses),
            rewards=tuple(reward for one in group for reward in one.rewards),
        )
        for group in groups.values()
    )


def split_by_prompt(examples: Sequence[Example], *, validation: int, test: int) -> Splits:
    """Split by BLAKE2b of the normalised prompt. No normalised prompt is in two splits.

    The ``test`` prompts with the smallest hashes form the test split, the next ``validation``
    prompts the validation split, and all others the training split. Every split is in hash order.

    Raises:
      UserError: a count is negative, or no prompt is left for training.
    """
    for name, count in (("validation", validation), ("test", test)):
        if count < 0:
            raise UserError(f"task.{name} is {count}: expected a number of prompts, 0 or more")
    ordered = _ordered(examples)
    rank = {prompt: n for n, prompt in enumerate(dict.fromkeys(name for name, _ in ordered))}
    if len(rank) <= validation + test:
        raise UserError(
            f"the data has {len(rank)} different prompts, which leaves none for training after "
            f"task.test={test} and task.validation={validation}: lower these"
        )
    ranks = [rank[name] for name, _ in ordered]  # ascending, and equal for equal prompts
    first, second = bisect.bisect_left(ranks, test), bisect.bisect_left(ranks, test + validation)
    in_order = tuple(example for _, example in ordered)
    return Splits(
        train=in_order[second:], validation=in_order[first:second], test=in_order[:first], notes=()
    )


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
    return dataclasses.replace(
        splits, train=in_hash_order(splits.train)[:limit], notes=(*splits.notes, note)
    )


def in_hash_order(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Sort by the hash of the normalised prompt, then by prompt, responses and id."""
    return tuple(example for _, example in _ordered(examples))


def _ordered(examples: Iterable[Example]) -> list[tuple[str, Example]]:
    """Pair examples with their normalised prompts, in hash order."""
    named = ((normalise(example.prompt), example) for example in examples)
    keyed = [(_hash(n), e.prompt, e.responses, e.id, n, e) for n, e in named]
    keyed.sort(key=operator.itemgetter(slice(4)))
    return [key[4:] for key in keyed]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
