"""score: every (prompt, response) row gets its reward, from scorers or as stored with the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from alol_jax import rewards
from alol_jax.progress import progress
from alol_jax.types import Example, Scored, ScoredSplits, Splits, StageContext, Task, UserError

PIECE = 1000  # rows scored between two looks at the clock and at who wants to stop


def score(
    task: Task, weights: Mapping[str, float], splits: Splits, *, context: StageContext
) -> ScoredSplits:
    """Flattens the examples to rows with rewards.

    With a weight above 0 the scorers give the reward, Σ weight · component, and stored rewards are
    ignored; ``max_reward`` is then Σ weight · bound. With all weights at 0 the reward is the stored
    one, there are no components, and ``max_reward`` is the largest stored reward of the training
    rows (nothing else is known about the scale).

    Args:
      task: its ``rewards`` are the components.
      weights: component name -> weight, for every component of the task.
      splits: the result of ``load``.

    Raises:
      UserError: a bad weight or score; all weights 0 and a row without a stored reward, with a
        negative or non-finite one, or no training reward above 0.
    """
    train_responses = [text for example in splits.train for text in example.responses]
    reward = rewards.of_task(task, weights, train_responses)
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    if reward.names:
        if any(example.rewards for example in splits.train):
            context.say(
                f"the data's stored rewards are ignored: the weights ask for {_join(reward.names)}"
            )
        scored = _by_scorers(named, reward, context)
        max_reward = reward.max_reward
    else:
        scored = {name: _as_stored(name, examples) for name, examples in named.items()}
        max_reward = max((row.reward for row in scored["train"]), default=0.0)
        if max_reward <= 0:
            raise UserError("no stored training reward is above 0: there is nothing to learn from")
    for name, rows in scored.items():
        context.say(_summary(name, rows, reward.names))
    return ScoredSplits(
        train=scored["train"],
        validation=scored["validation"],
        test=scored["test"],
        component_names=reward.names,
        max_reward=max_reward,
        notes=splits.notes,
    )


def _by_scorers(
    named: Mapping[str, Sequence[Example]], reward: rewards.Reward, context: StageContext
) -> dict[str, tuple[Scored, ...]]:
    rows = {
        name: [
            Scored(example.id, example.prompt, response, example.source, (), 0.0)
            for example in examples
            for response in example.responses
        ]
        for name, examples in named.items()
    }
    pieces = [
        (name, those[first : first + PIECE])
        for name, those in rows.items()
        for first in range(0, len(those), PIECE)
    ]
    scored: dict[str, list[Scored]] = {name: [] for name in named}
    for name, piece in progress(
        pieces, total=len(pieces), label="score", stopping=context.stopping
    ):
        scored[name] += reward.rows(piece, [row.response for row in piece])
    return {name: tuple(those) for name, those in scored.items()}


def _as_stored(split: str, examples: Sequence[Example]) -> tuple[Scored, ...]:
    rows = []
    for example in examples:
        place = f"{split} example {example.id!r}"
        if not example.rewards:
            raise UserError(
                f"{place} has no stored reward and every reward weight is 0: give all rows a "
                "'reward', or one of the rewards a weight above 0"
            )
        for response, stored in zip(example.responses, example.rewards, strict=True):
            if not math.isfinite(stored) or stored < 0:
                raise UserError(
                    f"{place}: the stored reward is {stored}: expected a finite number, 0 or more "
                    "(add a constant to all rewards)"
                )
            rows.append(
                Scored(example.id, example.prompt, response, example.source, (), float(stored))
            )
    return tuple(rows)


def _summary(name: str, rows: Sequence[Scored], component_names: Sequence[str]) -> str:
    line = f"{name}: {len(rows)} rows"
    if not rows:
        return line
    line += f", mean reward {np.mean([row.reward for row in rows]):.3f}"
    if component_names:
        means = np.mean([row.components for row in rows], axis=0)
        parts = (f"{c} {m:.3f}" for c, m in zip(component_names, means, strict=True))
        line += f" ({_join(parts)})"
    return line


def _join(parts: Sequence[str]) -> str:
    return ", ".join(parts)
