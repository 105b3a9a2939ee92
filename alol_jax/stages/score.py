"""score: every (prompt, response) row gets its reward, from scorers or as stored with the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from alol_jax.rewards import reward as rewards
from alol_jax.runs.progress import progress
from alol_jax.types import Example, Scored, ScoredSplits, Splits, StageContext, UserError

PIECE = 256  # rows scored between two looks at the clock and at who wants to stop


def score(
    scoring: rewards.Scoring, options: ConfigDict, splits: Splits, *, context: StageContext
) -> ScoredSplits:
    """Flattens the examples to rows with rewards.

    With a weight above 0 the scorers give the reward, Σ weight · component, and ``max_reward`` is
    Σ weight · bound. Stored rewards are ignored then, but in the splits of ``options.stored``:
    there a stored reward is the score of the only component, and some rows are scored again to see
    whether it is.
    With all weights at 0 the reward is the stored one, there are no components, and ``max_reward``
    is the largest stored reward of the training rows (nothing else is known about the scale).

    Args:
      scoring: what the reward is.
      options: ``config.score``.
      splits: the result of ``load``.

    Raises:
      UserError: a bad score; stored rewards that the scorer contradicts; all weights 0 and a row
        without a stored reward, with a negative or non-finite one, or no training reward above 0.
    """
    train_responses = [text for example in splits.train for text in example.responses]
    reward = scoring.reward(train_responses)
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    if reward.names:
        for name, examples in named.items():
            if any(example.rewards for example in examples):
                _check_stored(name, examples, reward, options, context)
        scored = _by_scorers(named, reward, options.stored, context)
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


def _check_stored(
    split: str,
    examples: Sequence[Example],
    reward: rewards.Reward,
    options: ConfigDict,
    context: StageContext,
) -> None:
    """Scores some of the rows again that have a stored reward which is to stand.

    Raises:
      UserError: several components; or the two differ, with the rows where they differ most.
    """
    if split not in options.stored:
        context.say(
            f"{split}: stored rewards are ignored: the weights ask for {_join(reward.names)}"
        )
        return
    way_out = f"take {split!r} out of config.score.stored to score its rows anew"
    rows = [row for row in _rows(examples, stored=True) if row.components]
    _check_is_one_score(rows, reward, way_out)
    places = np.linspace(0, len(rows) - 1, min(options.checked, len(rows))).round().astype(int)
    sample = [rows[place] for place in places]
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
        f"{split}: stored rewards stand; of {len(sample)} scored again none differs by more than "
        f"{max(gaps):.4f}"
    )


def _check_is_one_score(rows: Sequence[Scored], reward: rewards.Reward, way_out: str) -> None:
    """A stored reward can be the score of one component, within its bound."""
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
    """A row per response; with ``stored``, its stored reward as the only component."""
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


def _by_scorers(
    named: Mapping[str, Sequence[Example]],
    reward: rewards.Reward,
    stored: Collection[str],
    context: StageContext,
) -> dict[str, tuple[Scored, ...]]:
    """Every row with its score; stored ones stand."""
    rows = {
        name: [_totalled(row, reward.weights) for row in _rows(examples, stored=name in stored)]
        for name, examples in named.items()
    }
    open_ones = [
        (name, place)
        for name, those in rows.items()
        for place, row in enumerate(those)
        if not row.components
    ]
    pieces = [open_ones[first : first + PIECE] for first in range(0, len(open_ones), PIECE)]
    for piece in progress(pieces, context.watch("score"), total=len(pieces)):
        asked = [rows[name][place] for name, place in piece]
        done = reward.score_rows(asked, [row.response for row in asked])
        for (name, place), row in zip(piece, done, strict=True):
            rows[name][place] = row
    return {name: tuple(those) for name, those in rows.items()}


def _totalled(row: Scored, weights: Sequence[float]) -> Scored:
    """The row with Σ weight · component, where it has components."""
    if not row.components:
        return row
    total = sum(w * score for w, score in zip(weights, row.components, strict=True))
    return dataclasses.replace(row, reward=float(total))


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
