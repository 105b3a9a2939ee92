"""The reward models that ``config.reward_models`` names, opened; weights are read at first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from alol_jax.models.language_model import LanguageModel
from alol_jax.rewards.classifier import open_scorer
from alol_jax.rewards.distilled import DESCRIPTION, open_distilled

Turns = Callable[[str], tuple[str, ...]]


class RewardModel(Protocol):
    """Scores responses with a network: prompts, responses -> f64[rows], each in [0, 1]."""

    path: str
    fingerprint: Any

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray: ...


def open_reward_models(
    options: Mapping[str, ConfigDict], used: Sequence[str], turns: Turns, lm: LanguageModel
) -> dict[str, RewardModel]:
    """The models of ``config.reward_models`` by name, those in ``used`` opened, others left out.

    Args:
        options: name -> ``path``, ``reads``, ``score``, ``max_tokens``, ``batch_size``, ``dtype``.
        used: names with a weight above 0 somewhere.
        turns: of the task: prompt -> what was said.
        lm: for its mesh; and its base serves a distilled model that stands on the same one.

    Raises:
        UserError: a model that cannot be read, or options that do not fit it.
    """
    found: dict[str, RewardModel] = {}
    for name, wanted in options.items():
        if name in used:
            where = f"config.reward_models.{name}"
            distilled = (Path(wanted.path).expanduser() / DESCRIPTION).is_file()
            make = open_distilled if distilled else open_scorer
            found[name] = make(wanted, where, turns, lm)
    return found
