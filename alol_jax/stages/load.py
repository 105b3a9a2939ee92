"""load: read the task's files into train, validation and test splits that share no prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel
from alol_jax.paths import with_local_copies
from alol_jax.rewards.gold import gold_of
from alol_jax.runs.progress import progress
from alol_jax.tables.columns import Ragged, Texts, first_shared
from alol_jax.tables.table import Table
from alol_jax.text.long_texts import (
    TokenCounter,
    still_apart,
    without_long_rows,
    without_old_turns,
)
from alol_jax.types import Example, Splits, StageContext, Task, is_chat

SWAP_SEED = 7  # fixed, so that every run swaps the same responses


def load(
    task: Task,
    options: Any,
    files: Sequence[Path],
    counter: TokenCounter | None,
    *,
    context: StageContext,
) -> Splits:
    """Read the task's data and check it.

    Args:
        task: how to read the data.
        options: ``config.task``.
        files: what the task reads; an input, so that editing a file makes the result stale.
        counter: see `counter_of`.

    Raises:
        UserError: ``options.swapped`` is outside [0, 1]; a split, prompt or response is empty; the
            number of stored rewards differs from the number of responses; an id occurs twice; a
            prompt is in two splits. The message names the example.
    """
    splits = swap_responses(read_splits(task, options, counter), options.swapped)
    return check_splits(task, splits, context.say)


def counter_of(lm: LanguageModel, task: Task, options: Any) -> TokenCounter | None:
    """Return what counts tokens, if the data depends on it: where the task shortens prompts by
    whole turns, ``options.max_tokens`` leaves rows out, or the model's chat template has to take
    the turns."""
    if task.shorten is None and not options.max_tokens and not is_chat(task.template):
        return None
    return TokenCounter(lm.tokenizer, task, lm.limits.prompt)


def read_splits(task: Task, options: Any, counter: TokenCounter | None) -> Splits:
    """Read the task's data, with prompts shortened and long rows left out as the task says."""
    splits = task.load(with_local_copies(options), progress)
    if counter is None:
        return splits
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    notes = list(splits.notes)
    if is_chat(task.template):
        for name, examples in named.items():
            _check_turns(name, examples, task, counter)
    if task.shorten is not None:
        for name, examples in named.items():
            named[name] = without_old_turns(name, examples, task.shorten, counter, notes)
        named = still_apart(named, notes)
    if options.max_tokens:
        for name, examples in named.items():
            named[name] = without_long_rows(name, examples, options.max_tokens, counter, notes)
    return Splits(**named, notes=tuple(notes))


def check_splits(task: Task, splits: Splits, say: Callable[[str], None]) -> Splits:
    """Check the splits, print a summary, and return them unchanged.

    Raises:
        UserError: see `load`.
    """
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, examples in named.items():
        if not len(examples):
            raise UserError(
                f"task {task.name!r} has no {name} examples: check its files and the counts "
                "task.validation and task.test"
            )
        _check_examples(name, examples)
    _check_ids(named)
    _check_prompts(named)
    for name, examples in named.items():
        say(_summary(name, examples))
    for note in splits.notes:
        say(note)
    return splits


def _check_turns(split: str, examples: Table[Example], task: Task, counter: TokenCounter) -> None:
    """Check that the chat template takes a prompt with each sequence of roles."""
    tried = set()
    for name, prompt in zip(examples["id"], examples["prompt"], strict=True):
        roles = tuple(turn.role for turn in task.conversation(prompt))
        if roles not in tried:
            tried.add(roles)
            try:
                counter.prompts([prompt])
            except UserError as error:
                raise UserError(f"{split} example {name!r}: {error}") from error


def swap_responses(splits: Splits, share: float) -> Splits:
    """Add noise: move this share of the training responses to other prompts.

    The chosen responses are rotated among their prompts, so that each gets another prompt (unless
    one prompt has more than half of them). All stored training rewards are dropped: those of the
    moved responses belong to other prompts, and stored and computed rewards must not be mixed. The
    gold responses stay with their prompts.

    Args:
        share: of the training responses, from 0 (no change) to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"config.task.swapped={share} must be a share from 0 to 1")
    train = splits.train
    responses = train["responses"]
    owner = np.repeat(train["prompt"].codes(), responses.lengths)  # the prompt of each response
    order = np.random.default_rng(SWAP_SEED).permutation(len(owner))
    # Sorted by prompt and rotated by the largest count per prompt, so none stays with its prompt.
    chosen = order[: round(share * len(owner))]
    chosen = chosen[np.lexsort((chosen, owner[chosen]))]
    if len(np.unique(owner[chosen])) < 2:
        return splits
    places = np.arange(len(owner))
    places[chosen] = np.roll(chosen, -np.bincount(owner[chosen]).max())
    train = train.replace(
        responses=Ragged.of(responses.flat.take(places), responses.lengths),
        rewards=Ragged.empty(len(train), np.float64),
    )
    note = f"{len(chosen)} of {len(owner)} training responses were given to other prompts."
    return dataclasses.replace(
        splits, train=train, notes=(*splits.notes, note), gold=gold_of(splits.train)
    )


def _check_examples(split: str, examples: Table[Example]) -> None:
    responses, rewards = examples["responses"], examples["rewards"].lengths
    odd = (rewards > 0) & (rewards != responses.lengths)
    if (
        all(map(str.strip, examples["prompt"]))
        and all(map(str.strip, responses.flat))
        and responses.lengths.all()
        and not odd.any()
    ):
        return
    for example in examples:
        _check_example(split, example)


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


def _check_ids(named: Mapping[str, Table[Example]]) -> None:
    ids = Texts.joined([examples["id"] for examples in named.values()])
    codes = ids.codes()
    first = ids.firsts()
    again = first[codes] != np.arange(len(codes))
    if again.any():
        place = int(np.argmax(again))
        split = np.repeat(list(named), [len(examples) for examples in named.values()])
        raise UserError(
            f"the id {ids[place]!r} occurs twice ({split[first[codes[place]]]} and {split[place]}) "
            "for different prompts: give every prompt its own id, or no prompt an id"
        )


def _check_prompts(named: Mapping[str, Table[Example]]) -> None:
    shared = first_shared([examples["prompt"] for examples in named.values()])
    if shared is not None:
        names = list(named)
        split, other = names[shared[0]], names[shared[2]]
        example = named[split][shared[1]]
        raise UserError(
            f"the prompt {example.prompt[:80]!r} is in {other} and in {split} "
            f"(id {example.id!r}): remove it from one of them"
        )


def _summary(name: str, examples: Table[Example]) -> str:
    responses = examples["responses"].flat
    words = np.median(np.fromiter((len(text.split()) for text in responses), int))
    return f"{name}: {len(examples)} prompts, {len(responses)} responses (median {words:g} words)"
