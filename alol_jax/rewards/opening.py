"""Opening the reward models of ``config.reward_models``. Weights are read at first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.devices.sharding import make_mesh
from alol_jax.models.language_model import LanguageModel
from alol_jax.rewards.classifier import open_scorer
from alol_jax.rewards.cosine import Encoder, open_cosine
from alol_jax.rewards.distilled import DESCRIPTION, open_distilled
from alol_jax.rewards.forms import COSINES
from alol_jax.types import Exchange, alternating

Read = Callable[[str, str], Exchange]


class RewardModel(Protocol):
    """A neural scorer: prompts, responses -> f64[rows], each in ``bounds``."""

    path: str
    fingerprint: Any
    bounds: tuple[float, float]  # infinite where a score may be any number
    commits: Mapping[str, str]  # that were read of repositories on the hub

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray: ...

    def notes(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[str, ...]:
        """Return what happens to these texts, with counts; one sentence each."""


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
            models[name] = _opened(wanted, where, read, lm.mesh, lm, encoders)
    return models


def open_reward_model(
    path: str,
    *,
    reads: str,
    score: str = "sigmoid",
    max_tokens: int = 1024,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> RewardModel:
    """Open one reward model by itself, for a program of one's own.

    Prompts are single turns of a person.

    Args:
        path, reads, score, max_tokens, dtype: as in ``config.reward_models``.
        mesh: the device mesh; None: all devices.

    Raises:
        UserError: the model cannot be read, or its options do not fit it.
    """
    options = {"path": path, "reads": reads, "score": score, "max_tokens": max_tokens}
    wanted = ConfigDict(options | {"dtype": dtype})
    mesh = make_mesh(data=-1, fsdp=1, tensor=1) if mesh is None else mesh

    def read(prompt: str, response: str) -> Exchange:
        turns = (prompt,)
        return Exchange(turns, response, (prompt, response), alternating(turns))

    return _opened(wanted, "open_reward_model", read, mesh, None, {})


def _opened(
    wanted: ConfigDict,
    where: str,
    read: Read,
    mesh: Mesh,
    lm: LanguageModel | None,
    encoders: dict[tuple[str, int, str], Encoder],
) -> RewardModel:
    """Open a model: a distilled one is known by its folder, an encoder by what it reads."""
    if paths.exists(paths.path_of(wanted.path) / DESCRIPTION):
        return open_distilled(wanted, where, read, mesh, lm)
    if wanted.reads in COSINES:
        return open_cosine(wanted, where, read, mesh, encoders)
    return open_scorer(wanted, where, read, mesh)
