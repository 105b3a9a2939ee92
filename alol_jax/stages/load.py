"""load: the task's raw files -> prompts with responses, in three splits that share no prompt."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.types import Example, Splits, StageContext, Task, UserError

SWAPPING = 7  # seed of which responses are swapped: the same in every run


def load(task: Task, options: Any, files: Sequence[Path], *, context: StageContext) -> Splits:
    """Reads the task's data and checks what every task promises.

    Args:
      task: how to read the data.
      options: ``config.task``.
      files: what the task reads; an input, so that an edited file makes the result stale.

    Raises:
      UserError: ``options.swapped`` is no share; an empty split; an empty prompt or response; a
        number of stored rewards that is not the number of responses; an id that occurs twice; a
        prompt in two splits. Names the example.
    """
    return checked(task, swapped(task.load(options), options.swapped), context.say)


def checked(task: Task, splits: Splits, say: Callable[[str], None]) -> Splits:
    """``splits``, if they keep what every task promises; says what they hold.

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


def swapped(splits: Splits, share: float) -> Splits:
    """The splits with this share of the training responses exchanged among their prompts.

    Noise in the data on purpose: the chosen responses go round in a circle, each to another prompt
    (unless one prompt has more than half of them).
    Their stored rewards are gone, since they were given to another answer; so are the others', for
    stored and scored rewards do not mix.

    Args:
      share: of the training responses, from 0 (nothing changes) to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"config.task.swapped={share} must be a share from 0 to 1")
    places = [(n, k) for n, one in enumerate(splits.train) for k in range(len(one.responses))]
    order = np.random.default_rng(SWAPPING).permutation(len(places))
    chosen = [places[index] for index in order[: round(share * len(places))]]
    if len({n for n, _ in chosen}) < 2:
        return splits
    # By prompt, and on by as many as the busiest prompt has, so that none gets its own back.
    chosen.sort()
    on = max(collections.Counter(n for n, _ in chosen).values())
    new = [list(one.responses) for one in splits.train]
    for (n, k), (other, place) in zip(chosen, chosen[on:] + chosen[:on], strict=True):
        new[n][k] = splits.train[other].responses[place]
    train = tuple(
        dataclasses.replace(one, responses=tuple(responses), rewards=())
        for one, responses in zip(splits.train, new, strict=True)
    )
    note = f"{len(chosen)} of {len(places)} training responses were given to others."
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
                    "different prompts: give every prompt its own id, or none an id"
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
                    f"(id {example.id!r}): take it out of one of them"
                )


def _summary(name: str, examples: Sequence[Example]) -> str:
    rows = sum(len(example.responses) for example in examples)
    words = statistics.median(
        len(text.split()) for example in examples for text in example.responses
    )
    return f"{name}: {len(examples)} prompts, {rows} responses (median {words:g} words)"
