"""Opening the reward models of ``config.reward_models``. Weights are read at first use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.models.language_model import LanguageModel
from alol_jax.rewards.classifier import open_scorer
from alol_jax.rewards.cosine import Encoder, open_cosine
from alol_jax.rewards.distilled import DESCRIPTION, open_distilled
from alol_jax.rewards.forms import COSINES
from alol_jax.types import Exchange

Read = Callable[[str, str], Exchange]


class RewardModel(Protocol):
    """A neural scorer: prompts, responses -> f64[rows], each in [0, 1]."""

    path: str
    fingerprint: Any

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray: ...


def open_reward_models(
    options: Mapping[str, ConfigDict], used: Sequence[str], read: Read, lm: LanguageModel
) -> dict[str, RewardModel]:
    """Open the models of ``config.reward_models`` that are in ``used``, by name.

    Args:
        options: name -> ``path``, ``reads``, ``score``, ``max_tokens``, ``dtype``.
        used: names with a weight above 0.
        read: from the task: prompt, response -> exchange.
        lm: its mesh is used, and its base, by a distilled model with the same one.

    Raises:
        UserError: a model cannot be read, or its options do not fit it.
    """
    models: dict[str, RewardModel] = {}
    encoders: dict[tuple[str, int, str], Encoder] = {}
    for name, wanted in options.items():
        if name in used:
            where = f"config.reward_models.{name}"
            models[name] = _opener(wanted, encoders)(wanted, where, read, lm)
    return models


def _opener(
    wanted: ConfigDict, encoders: dict[tuple[str, int, str], Encoder]
) -> Callable[..., RewardModel]:
    """What opens a model: a distilled one is known by its folder, an encoder by what it reads."""
    if paths.exists(paths.path_of(wanted.path) / DESCRIPTION):
        return open_distilled
    if wanted.reads in COSINES:
        return functools.partial(open_cosine, opened=encoders)
    return open_scorer
