"""load: read the task's files into train, validation and test splits that share no prompt."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.types import Example, Splits, StageContext, Task, UserError

SWAP_SEED = 7  # fixed, so that every run swaps the same responses


def load(task: Task, options: Any, files: Sequence[Path], *, context: StageContext) -> Splits:
    """Read the task's data and check it.

    Args:
        task: how to read the data.
        options: ``config.task``.
        files: what the task reads; an input, so that editing a file makes the result stale.

    Raises:
        UserError: ``options.swapped`` is outside [0, 1]; a split, prompt or response is empty; the
            number of stored rewards differs from the number of responses; an id occurs twice; a
            prompt is in two splits. The message names the example.
    """
    splits = swap_responses(task.load(options), options.swapped)
    return check_splits(task, splits, context.say)


def check_splits(task: Task, splits: Splits, say: Callable[[str], None]) -> Splits:
    """Check the splits, print a summary, and return them unchanged.

    Raises:
        UserError: see `load`.
    """
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, examples in named.items():
        if not examples:
            raise UserError(
                f"task {task.name!r} has no {name} examples: check its files and the counts "
                "task.validation and task.test"
            )
        for example in examples:
            _check_example(name, example)
    _check_ids(named)
    _check_prompts(named)
    for name, examples in named.items():
        say(_summary(name, examples))
    for note in splits.notes:
        say(note)
    return splits


def swap_responses(splits: Splits, share: float) -> Splits:
    """Add noise: move this share of the training responses to other prompts.

    The chosen responses are rotated among their prompts, so that each gets another prompt (unless
    one prompt has more than half of them). All stored training rewards are dropped: those of the
    moved responses belong to other prompts, and stored and computed rewards must not be mixed.

    Args:
        share: of the training responses, from 0 (no change) to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"config.task.swapped={share} must be a share from 0 to 1")
    places = [(n, k) for n, one in enumerate(splits.train) for k in range(len(one.responses))]
    order = np.random.default_rng(SWAP_SEED).permutation(len(places))
    chosen = [places[index] for index in order[: round(share * len(places))]]
    if len({n for n, _ in chosen}) < 2:
        return splits
    # Sorted by prompt and rotated by the largest count per prompt, so none stays with its prompt.
    chosen.sort()
    shift = max(collections.Counter(n for n, _ in chosen).values())
    new = [list(one.responses) for one in splits.train]
    for (n, k), (other, place) in zip(chosen, chosen[shift:] + chosen[:shift], strict=True):
        new[n][k] = splits.train[other].responses[place]
    train = tuple(
        dataclasses.replace(one, responses=tuple(responses), rewards=())
        for one, responses in zip(splits.train, new, strict=True)
    )
    note = f"{len(chosen)} of {len(places)} training responses were given to other prompts."
    return dataclasses.replace(splits, train=train, notes=(*splits.notes, note))


def _check_example(split: str, example: Example) -> None:
    place = f"{split} example {example.id!r}"
    if not example.prompt.strip():
        raise UserError(f"{place}: the prompt is empty")
    if not example.responses or not all(text.strip() for text in example.responses):
        raise UserError(f"{place}: a response is empty or missing")
    if example.rewards and len(example.rewards) != len(example.responses):
        raise UserError(
            f"{place}: {len(example.rewards)} rewards for {len(example.responses)} responses"
        )


def _check_ids(named: dict[str, Sequence[Example]]) -> None:
    owner: dict[str, str] = {}
    for split, examples in named.items():
        for example in examples:
            if example.id in owner:
                raise UserError(
                    f"the id {example.id!r} occurs twice ({owner[example.id]} and {split}) for "
                    "different prompts: give every prompt its own id, or no prompt an id"
                )
            owner[example.id] = split


def _check_prompts(named: dict[str, Sequence[Example]]) -> None:
    owner: dict[str, str] = {}
    for split, examples in named.items():
        for example in examples:
            other = owner.setdefault(example.prompt, split)
            if other != split:
                raise UserError(
                    f"the prompt {example.prompt[:80]!r} is in {other} and in {split} "
                    f"(id {example.id!r}): remove it from one of them"
                )


def _summary(name: str, examples: Sequence[Example]) -> str:
    rows = sum(len(example.responses) for example in examples)
    words = statistics.median(
        len(text.split()) for example in examples for text in example.responses
    )
    return f"{name}: {len(examples)} prompts, {rows} responses (median {words:g} words)"
