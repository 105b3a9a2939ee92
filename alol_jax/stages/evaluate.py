"""evaluate: the data's own responses, the reference and the policy on the test prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax import rewards
from alol_jax.decode import Sampling, respond
from alol_jax.language_model import LanguageModel
from alol_jax.sharding import place_params
from alol_jax.statistics import bootstrap, distinct, mean_length
from alol_jax.types import (
    Evaluation,
    Interval,
    Params,
    Policy,
    Scored,
    ScoredSplits,
    StageContext,
    SystemScores,
    Task,
)


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
    """Greedy answers of reference and policy to every test prompt, scored, with intervals.

    The difference policy − reference is paired by prompt. A prompt's several data responses count
    as one, their mean.

    Args:
        weights: ``config.rewards``.
        options: ``config.evaluate``; ``decoding``: ``config.decode``.
        seed: of the bootstrap.
    """
    asked = tuple({row.example_id: row for row in scored.test}.values())
    reward = rewards.build(
        task.rewards,
        rewards.weights_of(task.rewards, weights),
        [row.response for row in scored.train],
    )

    def answers(trained: Params, label: str) -> tuple[Scored, ...]:
        responses = respond(
            lm.transformer,
            {**lm.frozen(), **place_params(trained, lm.mesh)},
            lm.tokenizer,
            [
                lm.tokenizer.prompt(task.template, row.prompt, limit=lm.prompt_widths[-1])
                for row in asked
            ],
            Sampling(decoding.max_new_tokens, end=(lm.tokenizer.eos_id,)),
            widths=lm.prompt_widths,
            batch_size=decoding.batch_size,
            key=jax.random.key(seed),
            mesh=lm.mesh,
            stop_texts=task.stop,
            label=label,
        )
        if reward.names:
            return reward.rows(asked, responses)
        return tuple(
            dataclasses.replace(row, response=response, components=(), reward=0.0)
            for row, response in zip(asked, responses, strict=True)
        )

    answered = {
        "reference": answers(reference.trained, "reference"),
        "policy": answers(policy.trained, "policy"),
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
    return bootstrap(column, draws=options.bootstrap, confidence=options.confidence, seed=seed)
