"""Splitting by prompt: a pure function of the prompts, independent of row order."""

from __future__ import annotations

import dataclasses
import hashlib
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
        dataclasses.replace(
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
    ordered = in_hash_order(examples)
    rank = {prompt: n for n, prompt in enumerate(dict.fromkeys(map(_normalised, ordered)))}
    if len(rank) <= validation + test:
        raise UserError(
            f"the data has {len(rank)} different prompts, which leaves none for training after "
            f"task.test={test} and task.validation={validation}: lower these"
        )
    ranks = [rank[_normalised(example)] for example in ordered]
    return Splits(
        train=tuple(e for e, n in zip(ordered, ranks, strict=True) if n >= test + validation),
        validation=tuple(
            e for e, n in zip(ordered, ranks, strict=True) if test <= n < test + validation
        ),
        test=tuple(e for e, n in zip(ordered, ranks, strict=True) if n < test),
        notes=(),
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
    return tuple(
        sorted(examples, key=lambda e: (_hash(_normalised(e)), e.prompt, e.responses, e.id))
    )


def _normalised(example: Example) -> str:
    return normalise(example.prompt)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
