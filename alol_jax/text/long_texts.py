"""Texts that are too long for the model: counting tokens, and leaving out turns or rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table
from alol_jax.text.prompts import encoder_of
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.types import Example, Task

UNLIMITED = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCounter:
    """Counts tokens as a run with this tokenizer and template sees them.

    Attributes:
        tokenizer: the policy's.
        task: how prompts are asked.
        limit: the most tokens of a prompt.
    """

    tokenizer: Tokenizer
    task: Task
    limit: int

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identify what the counts depend on, and the limit."""
        return {
            "tokenizer": self.tokenizer.fingerprint(),
            "template": self.task.template,
            "marks": list(self.task.marks),
            "date": self.task.date,
            "limit": self.limit,
        }

    def prompts(self, texts: Sequence[str]) -> np.ndarray:
        """The tokens of each prompt, the template included: i64[N]."""
        encode = encoder_of(self.tokenizer, self.task, self.task.conversation)
        return encode(texts, limit=UNLIMITED)[0].lengths

    def responses(self, texts: Sequence[str]) -> np.ndarray:
        """The tokens of each response, its end token included: i64[N]."""
        return self.tokenizer.encode_responses(texts, limit=UNLIMITED)[0].lengths


def without_old_turns(
    split: str,
    examples: Table[Example],
    shorten: Callable[[str], str | None],
    counter: TokenCounter,
    notes: list[str],
) -> Table[Example]:
    """Leave out the oldest turns of prompts that are too long for the model."""
    prompts = list(examples["prompt"])
    long = np.flatnonzero(counter.prompts(prompts) > counter.limit)
    changed = 0
    for place in long:
        kept = prompts[place]
        while counter.prompts([kept])[0] > counter.limit:
            shorter = shorten(kept)
            if shorter is None:
                break
            kept = shorter
        changed += kept != prompts[place]
        prompts[place] = kept
    if not changed:
        return examples
    notes.append(
        f"The oldest turns of {changed} of {len(examples)} {split} prompts left out, to fit in "
        f"{counter.limit} tokens."
    )
    return examples.replace(prompt=Texts.of(prompts))


def still_apart(named: dict[str, Table[Example]], notes: list[str]) -> dict[str, Table[Example]]:
    """Drop test and training examples whose prompt, now shorter, is one of validation or test."""
    held_out: set[str] = set()
    kept = dict(named)
    for split in ("validation", "test", "train"):
        prompts = list(named[split]["prompt"])
        new = np.fromiter((prompt not in held_out for prompt in prompts), bool, len(prompts))
        held_out.update(prompts)
        if not new.all():
            kept[split] = named[split].where(new)
            notes.append(
                f"Dropped {split} prompts that are held-out ones without their oldest turns: "
                f"{np.sum(~new)}."
            )
    return kept


def without_long_rows(
    split: str, examples: Table[Example], limit: int, counter: TokenCounter, notes: list[str]
) -> Table[Example]:
    """Leave out responses that have more than ``limit`` tokens together with their prompt."""
    responses, rewards = examples["responses"], examples["rewards"]
    prompts = np.repeat(counter.prompts(examples["prompt"]), responses.lengths)
    fits = prompts + counter.responses(responses.flat) <= limit
    if fits.all():
        return examples
    owner = np.repeat(np.arange(len(examples)), responses.lengths)
    kept = np.bincount(owner, weights=fits, minlength=len(examples)).astype(np.int64)
    notes.append(f"{np.sum(~fits)} {split} responses with more than {limit} tokens left out.")
    rewarded = np.repeat(rewards.lengths > 0, responses.lengths)
    places = np.flatnonzero(fits)
    shorter = examples.replace(
        responses=Ragged.of(responses.flat.take(places), kept),
        rewards=Ragged.of(rewards.flat[fits[rewarded]], np.where(rewards.lengths > 0, kept, 0)),
    )
    return shorter.where(kept > 0)
