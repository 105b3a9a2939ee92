"""score: give every (prompt, response) row a reward, from scorers or as stored with the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from alol_jax.rewards import reward as rewards
from alol_jax.runs.progress import progress
from alol_jax.types import Example, Scored, ScoredSplits, Splits, StageContext, UserError

CHUNK = 256  # rows scored between progress updates and checks for a stop request


def score(
    scoring: rewards.Scoring, options: ConfigDict, splits: Splits, *, context: StageContext
) -> ScoredSplits:
    """Flatten the examples to rows with rewards.

    If any weight is above 0, the scorers give the reward: Σ weight · component, and ``max_reward``
    is Σ weight · bound. Stored rewards are then ignored, except in the splits of
    ``options.stored``: there the stored reward is the score of the only component, and a sample of
    rows is scored again to verify it.
    If all weights are 0, the reward is the stored one, there are no components, and ``max_reward``
    is the largest stored training reward (nothing else is known about the scale).

    Args:
        scoring: how rewards are computed.
        options: ``config.score``.
        splits: the result of ``load``.

    Raises:
        UserError: a score is out of bounds; stored rewards disagree with the scorer; or all
            weights are 0 and a row has no stored reward, a negative or a non-finite one, or no
            training reward is above 0.
    """
    train_responses = [text for example in splits.train for text in example.responses]
    reward = scoring.reward(train_responses)
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    if reward.names:
        for name, examples in named.items():
            if any(example.rewards for example in examples):
                _check_stored(name, examples, reward, options, context)
        scored = _score_rows(named, reward, options.stored, context)
        max_reward = reward.max_reward
    else:
        scored = {name: _stored_rows(name, examples) for name, examples in named.items()}
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


def _check_stored(
    split: str,
    examples: Sequence[Example],
    reward: rewards.Reward,
    options: ConfigDict,
    context: StageContext,
) -> None:
    """Score a sample of the rows whose stored reward is used, and compare.

    Raises:
        UserError: there are several components, or the scores differ; the message shows the rows
            that differ most.
    """
    if split not in options.stored:
        context.say(
            f"{split}: stored rewards are ignored, the weights ask for {_join(reward.names)}"
        )
        return
    way_out = f"remove {split!r} from config.score.stored to score its rows again"
    rows = [row for row in _rows(examples, stored=True) if row.components]
    _check_is_one_score(rows, reward, way_out)
    indices = np.linspace(0, len(rows) - 1, min(options.checked, len(rows))).round().astype(int)
    sample = [rows[index] for index in indices]
    if not sample:
        return
    again = reward.score_rows(sample, [row.response for row in sample])
    gaps = [abs(a.components[0] - b.components[0]) for a, b in zip(sample, again, strict=True)]
    wrong = [place for place in np.argsort(gaps)[::-1] if gaps[place] > options.tolerance]
    if wrong:
        shown = "; ".join(
            f"{sample[i].example_id} {sample[i].response[:40]!r}: stored "
            f"{sample[i].components[0]:.3f}, scored {again[i].components[0]:.3f}"
            for i in wrong[:3]
        )
        raise UserError(
            f"{len(wrong)} of {len(sample)} stored {split} rewards differ by more than "
            f"{options.tolerance} from what {reward.names[0]} gives ({shown}): name the model that "
            f"gave them, or {way_out}"
        )
    context.say(
        f"{split}: stored rewards are used; {len(sample)} were scored again and differ by at most "
        f"{max(gaps):.4f}"
    )


def _check_is_one_score(rows: Sequence[Scored], reward: rewards.Reward, way_out: str) -> None:
    """Check that there is one component and that every stored reward is within its bound."""
    if len(reward.names) != 1:
        raise UserError(
            f"config.score.stored: a stored reward is one score, but {_join(reward.names)} make up "
            f"the reward: {way_out}"
        )
    for row in rows:
        if not 0 <= row.components[0] <= reward.components[0].bound:
            raise UserError(
                f"{row.example_id}: the stored reward is {row.components[0]}, {reward.names[0]} "
                f"scores from 0 to {reward.components[0].bound:.4g}: {way_out}"
            )


def _rows(examples: Sequence[Example], *, stored: bool) -> list[Scored]:
    """One row per response; with ``stored``, the stored reward is its only component."""
    return [
        Scored(
            example.id,
            example.prompt,
            response,
            example.source,
            (float(example.rewards[place]),) if stored and example.rewards else (),
            0.0,
        )
        for example in examples
        for place, response in enumerate(example.responses)
    ]


def _score_rows(
    named: Mapping[str, Sequence[Example]],
    reward: rewards.Reward,
    stored: Collection[str],
    context: StageContext,
) -> dict[str, tuple[Scored, ...]]:
    """Score every row that has no stored score to use."""
    rows = {
        name: [_with_total(row, reward.weights) for row in _rows(examples, stored=name in stored)]
        for name, examples in named.items()
    }
    unscored = [
        (name, index)
        for name, split_rows in rows.items()
        for index, row in enumerate(split_rows)
        if not row.components
    ]
    chunks = [unscored[start : start + CHUNK] for start in range(0, len(unscored), CHUNK)]
    for chunk in progress(chunks, context.watch("score"), total=len(chunks)):
        batch = [rows[name][index] for name, index in chunk]
        scored = reward.score_rows(batch, [row.response for row in batch])
        for (name, index), row in zip(chunk, scored, strict=True):
            rows[name][index] = row
    return {name: tuple(split_rows) for name, split_rows in rows.items()}


def _with_total(row: Scored, weights: Sequence[float]) -> Scored:
    """Set the reward to Σ weight · component if the row has components."""
    if not row.components:
        return row
    total = sum(w * score for w, score in zip(weights, row.components, strict=True))
    return dataclasses.replace(row, reward=float(total))


def _stored_rows(split: str, examples: Sequence[Example]) -> tuple[Scored, ...]:
    """One row per response, with its stored reward."""
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
