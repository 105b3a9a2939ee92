"""score: give every (prompt, response) row a reward, from scorers or as stored with the data."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.rewards import reward as rewards
from alol_jax.rewards.gold import gold_of
from alol_jax.runs.progress import progress
from alol_jax.runs.workers import map_in_processes, workers_for
from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table, concatenate
from alol_jax.types import Example, Gold, Scored, ScoredSplits, Splits, StageContext

CHUNK = 256  # rows scored between progress updates and checks for a stop request
POOLED = 4096  # the same, if several processes share the work


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
        options: ``config.score``; of the splits in ``best``, the best responses stay.
        splits: the result of ``load``.

    Raises:
        UserError: a score is out of bounds; stored rewards disagree with the scorer; or all
            weights are 0 and a row has no stored reward, a negative or a non-finite one, or no
            training reward is above 0.
    """
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    gold = _gold(splits, train=scoring.compares)
    reward = scoring.reward(splits.train["responses"].flat, gold)
    rows = {name: rows_of(examples) for name, examples in named.items()}
    stored = {name: _stored(name, examples) for name, examples in named.items()}
    if reward.names:
        for name in named:
            if not np.isnan(stored[name]).all():
                _check_stored(name, rows[name], stored[name], reward, options, context)
            if name not in options.stored:
                stored[name] = np.full(len(rows[name]), np.nan)
        scored, notes = _score_rows(rows, stored, reward, context)
        max_reward = reward.max_reward
    else:
        for name in named:
            _check_all_stored(name, rows[name], stored[name])
        scored, notes = {name: rows[name].replace(reward=stored[name]) for name in named}, ()
        max_reward = float(stored["train"].max(initial=0.0))
        if max_reward <= 0:
            raise UserError("no stored training reward is above 0: there is nothing to learn from")
    for name in options.best:
        scored[name] = _best(name, scored[name], context)
    for name, table in scored.items():
        context.say(_summary(name, table, reward.names))
    return ScoredSplits(
        train=scored["train"],
        validation=scored["validation"],
        test=scored["test"],
        component_names=reward.names,
        max_reward=max_reward,
        notes=(*splits.notes, *notes),
        gold=gold,
    )


def _gold(splits: Splits, *, train: bool) -> Table[Gold]:
    """The gold responses of the prompts, of those of ``train`` only if it is true."""
    tables = [gold_of(splits.validation), gold_of(splits.test)]
    if train:
        tables.append(splits.gold if len(splits.gold) else gold_of(splits.train))
    return concatenate(tables)


def _best(split: str, rows: Table[Scored], context: StageContext) -> Table[Scored]:
    """Keep the response with the highest reward of each prompt, the first of equal ones."""
    codes = rows["example_id"].codes()
    order = np.lexsort((-rows["reward"], codes))  # stable
    first = np.diff(codes[order], prepend=-1) != 0
    context.say(f"{split}: the best response to each prompt stays, {first.sum()} of {len(rows)}")
    return rows.take(np.sort(order[first]))


def _check_stored(
    split: str,
    rows: Table[Scored],
    stored: np.ndarray,
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
    places = np.flatnonzero(~np.isnan(stored))
    _check_is_one_score(rows, stored, reward, way_out)
    indices = np.linspace(0, len(places) - 1, min(options.checked, len(places))).round()
    chosen = places[indices.astype(int)]
    if not len(chosen):
        return
    sample, theirs = rows.take(chosen), stored[chosen]
    ours = reward.score(sample["prompt"], sample["response"])[0][:, 0]
    gaps = np.abs(theirs - ours)
    wrong = [place for place in np.argsort(gaps)[::-1] if gaps[place] > options.tolerance]
    if wrong:
        shown = "; ".join(
            f"{sample[i].example_id} {sample[i].response[:40]!r}: stored {theirs[i]:.3f}, scored "
            f"{ours[i]:.3f}"
            for i in map(int, wrong[:3])
        )
        raise UserError(
            f"{len(wrong)} of {len(sample)} stored {split} rewards differ by more than "
            f"{options.tolerance} from what {reward.names[0]} gives ({shown}): name the model that "
            f"gave them, or {way_out}"
        )
    context.say(
        f"{split}: stored rewards are used; {len(sample)} were scored again and differ by at most "
        f"{gaps.max():.4f}"
    )


def _check_is_one_score(
    rows: Table[Scored], stored: np.ndarray, reward: rewards.Reward, way_out: str
) -> None:
    """Check that there is one component and that every stored reward is within its bound."""
    if len(reward.names) != 1:
        raise UserError(
            f"config.score.stored: a stored reward is one score, but {_join(reward.names)} make up "
            f"the reward: {way_out}"
        )
    bound = reward.components[0].bound
    outside = (stored < 0) | (stored > bound)  # False where there is none
    if outside.any():
        place = int(np.argmax(outside))
        raise UserError(
            f"{rows[place].example_id}: the stored reward is {stored[place]}, {reward.names[0]} "
            f"scores from 0 to {bound:.4g}: {way_out}"
        )


def rows_of(examples: Table[Example]) -> Table[Scored]:
    """Make one row per response, without a score."""
    responses = examples["responses"]
    owner = np.repeat(np.arange(len(examples)), responses.lengths)
    alone = len(owner) == len(examples)  # one response each: nothing to repeat

    def of_each(name: str) -> Texts:
        return examples[name] if alone else examples[name].take(owner)

    columns = {
        "example_id": of_each("id"),
        "prompt": of_each("prompt"),
        "response": responses.flat,
        "source": of_each("source"),
        "components": Ragged.empty(len(owner), np.float64),
        "reward": np.zeros(len(owner)),
    }
    return Table(Scored, columns)


def _stored(split: str, examples: Table[Example]) -> np.ndarray:
    """The stored reward of each response, f64[rows]; NaN if there is none.

    Raises:
        UserError: a stored reward is NaN itself.
    """
    rewards, lengths = examples["rewards"], examples["responses"].lengths
    has = np.repeat(rewards.lengths > 0, lengths)
    stored = np.full(len(has), np.nan)
    stored[has] = rewards.flat
    broken = has & np.isnan(stored)
    if broken.any():
        owner = np.repeat(np.arange(len(examples)), lengths)[int(np.argmax(broken))]
        raise _unusable(split, examples[int(owner)].id, np.nan)
    return stored


def _unusable(split: str, example_id: str, reward: float) -> UserError:
    return UserError(
        f"{split} example {example_id!r}: the stored reward is {reward}: expected a finite number, "
        "0 or more (add a constant to all rewards)"
    )


def _score_rows(
    rows: Mapping[str, Table[Scored]],
    stored: Mapping[str, np.ndarray],
    reward: rewards.Reward,
    context: StageContext,
) -> tuple[dict[str, Table[Scored]], tuple[str, ...]]:
    """Score every row that has no stored score to use; also return the notes of the reward."""
    every, known = concatenate(list(rows.values())), np.concatenate(list(stored.values()))
    unscored = np.flatnonzero(np.isnan(known))
    components = np.zeros((len(every), len(reward.names)))
    total = np.zeros(len(every))
    notes: tuple[str, ...] = ()
    if len(unscored) < len(every):
        used = ~np.isnan(known)
        components[used, 0] = known[used]
        total[used] = reward.weights[0] * known[used]
    if len(unscored):
        todo = every.where(np.isnan(known))
        run = functools.partial(_in_pieces, context)
        found = reward.score(todo["prompt"], todo["response"], run=run)
        components[unscored], total[unscored] = found
        notes = reward.notes(todo["prompt"], todo["response"])
    for note in notes:
        context.say(note)
    counts = np.full(len(every), len(reward.names))
    scored = every.replace(components=Ragged.of(components.reshape(-1), counts), reward=total)
    ends = np.cumsum([0, *map(len, rows.values())])
    return {name: scored[ends[n] : ends[n + 1]] for n, name in enumerate(rows)}, notes


def _in_pieces(
    context: StageContext,
    component: rewards.Component,
    prompts: Sequence[str],
    responses: Sequence[str],
) -> np.ndarray:
    """Score all rows of a component: on all cores if it needs no accelerator."""
    workers = workers_for(len(responses) // POOLED) if component.words_only else 1
    size = POOLED if workers > 1 else CHUNK
    starts = range(0, len(responses), size)
    pieces = ((list(prompts[at : at + size]), list(responses[at : at + size])) for at in starts)
    if workers > 1:
        found = map_in_processes(component.score, pieces, workers=workers)
    else:
        found = (component.score(*piece) for piece in pieces)
    watch = context.watch(f"score {component.name}")
    return np.concatenate(list(progress(found, watch, total=len(starts))))


def _check_all_stored(split: str, rows: Table[Scored], stored: np.ndarray) -> None:
    """Check that every row has a usable stored reward."""
    wrong = ~(np.isfinite(stored) & (stored >= 0))
    if not wrong.any():
        return
    place = int(np.argmax(wrong))
    if not np.isnan(stored[place]):
        raise _unusable(split, rows[place].example_id, stored[place])
    raise UserError(
        f"{split} example {rows[place].example_id!r} has no stored reward and every reward weight "
        "is 0: give all rows a 'reward', or one of the rewards a weight above 0"
    )


def _summary(name: str, rows: Table[Scored], component_names: Sequence[str]) -> str:
    line = f"{name}: {len(rows)} rows"
    if not len(rows):
        return line
    line += f", mean reward {np.mean(rows['reward']):.3f}"
    if component_names:
        means = rows["components"].matrix.mean(axis=0)
        parts = (f"{c} {m:.3f}" for c, m in zip(component_names, means, strict=True))
        line += f" ({_join(parts)})"
    return line


def _join(parts: Sequence[str]) -> str:
    return ", ".join(parts)
