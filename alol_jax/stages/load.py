"""load: the task's raw files -> prompts with responses, in three splits that share no prompt."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alol_jax.types import Example, Splits, StageContext, Task, UserError


def load(task: Task, options: Any, files: Sequence[Path], *, context: StageContext) -> Splits:
    """Reads the task's data and checks what every task promises.

    Args:
      task: how to read the data.
      options: ``config.task``.
      files: what the task reads; an input, so that an edited file makes the result stale.

    Raises:
      UserError: an empty split; an empty prompt or response; a number of stored rewards that is not
        the number of responses; an id that occurs twice; a prompt in two splits. Names the example.
    """
    splits = task.load(options)
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
        context.say(_summary(name, examples))
    for note in splits.notes:
        context.say(note)
    return splits


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
