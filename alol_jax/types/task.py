"""A task: everything specific to one kind of data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from alol_jax.types.data import Splits


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """One reward component of a task.

    ``scorer`` is a key of ``rewards.reward.SCORERS``. ``template`` builds the text to score from
    ``{prompt}`` and ``{response}``. Every score is in [0, bound]. Reward models are not listed
    here but in ``config.reward_models``, where any task can use them.
    """

    name: str
    scorer: str
    template: str
    bound: float


class Exchange(NamedTuple):
    """A prompt and a response, as reward models read them."""

    turns: tuple[str, ...]  # before the response; the first and the last are the person's
    response: str
    pair: tuple[str, str]  # what a classifier of two texts reads: the response is in the second


def stripped(text: str) -> str:
    """Return the generated text without leading and trailing whitespace."""
    return text.strip()


def one_turn(prompt: str) -> tuple[str, ...]:
    """Return the prompt as a single turn of the person."""
    return (prompt,)


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything specific to one task. Only ``tasks/`` knows the names of tasks."""

    name: str
    load: Callable[[Any], Splits]  # config.task -> splits
    files: Callable[[Any], tuple[Path, ...]]  # config.task -> what ``load`` reads
    template: str  # what the model reads, with "{prompt}"; special tokens in it are parsed
    stop: tuple[str, ...]  # stop sequences: texts whose tokens end a generated response
    rewards: tuple[RewardSpec, ...]
    clean: Callable[[str], str] = stripped  # generated text -> response
    # prompt -> the turns of the conversation; the first and the last are the person's
    turns: Callable[[str], tuple[str, ...]] = one_turn
    # (prompt, response) -> `Exchange.pair`; None: the last turn and the response
    pair: Callable[[str, str], tuple[str, str]] | None = None
    # names that are special tokens in prompts, too, where the tokenizer has them
    marks: tuple[str, ...] = ()
    # prompt -> the prompt without its oldest turn, or None if none can go; None: not by turns
    shorten: Callable[[str], str | None] | None = None

    def exchange(self, prompt: str, response: str) -> Exchange:
        """Return what reward models read of a prompt and a response."""
        turns = self.turns(prompt)
        pair = (turns[-1], response) if self.pair is None else self.pair(prompt, response)
        return Exchange(turns, response, pair)
