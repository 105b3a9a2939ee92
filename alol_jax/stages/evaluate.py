"""evaluate: the data's own responses, the reference and the policy on the test prompts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax import rewards
from alol_jax.answers import answer, one_per_prompt
from alol_jax.language_model import LanguageModel
from alol_jax.sampling import decoding_of
from alol_jax.statistics import bootstrap, distinct, mean_length
from alol_jax.types import (
    Evaluation,
    Interval,
    Policy,
    Scored,
    ScoredSplits,
    StageContext,
    SystemScores,
    Task,
)

CONFIDENCE = 0.95  # of every interval; the report's words say so


def evaluate(
    lm: LanguageModel,
    task: Task,
    weights: ConfigDict,
    options: ConfigDict,
    decoding: ConfigDict,
    seed: int,
    scored: ScoredSplits,
    reference: Policy,
    policy: Policy,
    *,
    context: StageContext,
) -> Evaluation:
    """The likeliest answers of reference and policy to every test prompt, scored, with intervals.

    The difference policy − reference is paired by prompt. A prompt's several data responses count
    as one, their mean.

    Args:
        weights: ``config.rewards``.
        options: ``config.evaluate``; ``decoding``: ``config.decode``.
        seed: of the bootstrap.
    """
    asked = one_per_prompt(scored.test)
    reward = rewards.of_task(task, weights, [row.response for row in scored.train])
    answered = {
        name: answer(
            lm,
            task,
            fitted.trained,
            asked,
            reward,
            decoding_of(decoding),
            batch_size=decoding.batch_size,
            key=jax.random.key(seed),
            label=f"{name} answers",
            say=context.say,
            stopping=context.stopping,
        )
        for name, fitted in (("reference", reference), ("policy", policy))
    }
    systems = [_figures("data", scored.test, True, options, seed)]
    for name, rows in answered.items():
        systems.append(_figures(name, rows, bool(reward.names), options, seed))
    differences = ()
    if reward.names:
        gain = _columns(answered["policy"]) - _columns(answered["reference"])
        differences = tuple(_interval(column, options, seed) for column in gain.T)
    return Evaluation(
        data=scored.test,
        reference=answered["reference"],
        policy=answered["policy"],
        component_names=reward.names,
        systems=tuple(systems),
        differences=differences,
    )


def _columns(rows: Sequence[Scored]) -> np.ndarray:
    """Components and total, averaged over a prompt's responses: f64[prompts, components + 1]."""
    prompts: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        prompts.setdefault(row.example_id, []).append((*row.components, row.reward))
    return np.array([np.mean(found, axis=0) for found in prompts.values()])


def _figures(
    name: str, rows: Sequence[Scored], has_reward: bool, options: ConfigDict, seed: int
) -> SystemScores:
    columns = [_interval(column, options, seed) for column in _columns(rows).T]
    texts = [row.response for row in rows]
    return SystemScores(
        name=name,
        reward=columns[-1] if has_reward else None,
        components=tuple(columns[:-1]) if has_reward else (),
        distinct=(distinct(texts, 1), distinct(texts, 2), distinct(texts, 3)),
        length=mean_length(texts),
    )


def _interval(column: np.ndarray, options: ConfigDict, seed: int) -> Interval:
    return bootstrap(column, draws=options.bootstrap, confidence=CONFIDENCE, seed=seed)
