"""A task: everything specific to one kind of data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alol_jax.types.context import Progress
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


CHAT = "chat"
"""The template of a task whose prompts are written by the model's own chat template."""

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


class Turn(NamedTuple):
    """What one side says."""

    role: str  # SYSTEM, USER or ASSISTANT
    text: str


class Exchange(NamedTuple):
    """A prompt and a response, as reward models read them."""

    turns: tuple[str, ...]  # before the response; the first and the last are the person's
    response: str
    pair: tuple[str, str]  # what a classifier of two texts reads: the response is in the second
    conversation: tuple[Turn, ...] = ()  # the prompt as a chat template reads it


def is_chat(template: str) -> bool:
    """Whether a template is the model's own chat template."""
    return template == CHAT


def alternating(texts: Sequence[str]) -> tuple[Turn, ...]:
    """Return turns of the user and the assistant; the last is the user's."""
    roles = ((USER, ASSISTANT)[(len(texts) - 1 - place) % 2] for place in range(len(texts)))
    return tuple(map(Turn, roles, texts))


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
    load: Callable[[Any, Progress], Splits]  # config.task, how progress is shown -> splits
    files: Callable[[Any], tuple[Path, ...]]  # config.task -> what ``load`` reads
    template: str  # what the model reads, with "{prompt}" and special tokens; or CHAT
    stop: tuple[str, ...]  # stop sequences: texts whose tokens end a generated response
    rewards: tuple[RewardSpec, ...]
    clean: Callable[[str], str] = stripped  # generated text -> response
    # prompt -> the turns of the conversation; the first and the last are the person's
    turns: Callable[[str], tuple[str, ...]] = one_turn
    # (prompt, response) -> `Exchange.pair`; None: the last turn and the response
    pair: Callable[[str, str], tuple[str, str]] | None = None
    # prompt -> what a chat template reads; None: ``turns``, which alternate
    messages: Callable[[str], tuple[Turn, ...]] | None = None
    # YYYY-MM-DD: today, for chat templates that ask; only with CHAT
    date: str = ""
    # names that are special tokens in prompts, too, where the tokenizer has them
    marks: tuple[str, ...] = ()
    # prompt -> the prompt without its oldest turn, or None if none can go; None: not by turns
    shorten: Callable[[str], str | None] | None = None

    def conversation(self, prompt: str) -> tuple[Turn, ...]:
        """Return the turns of a prompt, as a chat template reads them."""
        return alternating(self.turns(prompt)) if self.messages is None else self.messages(prompt)

    def exchange(self, prompt: str, response: str) -> Exchange:
        """Return what reward models read of a prompt and a response."""
        turns = self.turns(prompt)
        pair = (turns[-1], response) if self.pair is None else self.pair(prompt, response)
        return Exchange(turns, response, pair, self.conversation(prompt))
