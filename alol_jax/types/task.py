"""A task: everything specific to one kind of data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
