"""score: give every (prompt, response) row a reward, from scorers or as stored with the data."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.reports.agreement import agreement
from alol_jax.reports.statistics import pearson
from alol_jax.rewards import reward as rewards
from alol_jax.rewards.gold import gold_of
from alol_jax.rewards.stored import (
    LABELS,
    check_all_stored,
    check_in_float32,
    far_notes,
    same_text_notes,
    stored_rewards,
)
from alol_jax.rewards.transform import fit_transform, line_to, transformed
from alol_jax.runs.progress import progress
from alol_jax.runs.workers import map_in_processes, workers_for
from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table, concatenate
from alol_jax.training.pairs import best_first
from alol_jax.types import (
    Agreement,
    Example,
    Gold,
    RewardTransform,
    Scored,
    ScoredSplits,
    Splits,
    StageContext,
)

CHUNK = 256  # rows scored between progress updates and checks for a stop request
POOLED = 4096  # the same, if several processes share the work


def score(
    scoring: rewards.Scoring, options: ConfigDict, splits: Splits, *, context: StageContext
) -> ScoredSplits:
    """Flatten the examples to rows with rewards.

    If any weight is above 0, the scorers give the reward: Σ weight · component. Stored rewards are
    then ignored, except in the splits of ``options.stored``: there the stored reward is the score
    of the only component, and a sample of rows is scored again to verify it.
    If all weights are 0, or with ``options.rows`` "labels", the reward is the stored one and there
    are no components. With labels and scorers, the scorers score what is generated; how far they
    agree with the labels is measured, and their scores are brought to the scale of the labels.

    Then the transform is fitted to the training rows and applied to all.

    Args:
        scoring: how rewards are computed.
        options: ``config.score``; of the splits in ``best``, the best responses stay.
        splits: the result of ``load``.

    Raises:
        UserError: a score is out of bounds; stored rewards disagree with the scorer; or the stored
            reward is to be used and a row has none, or a non-finite one.
    """
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    stored = {name: stored_rewards(name, examples) for name, examples in named.items()}
    gold = _gold(splits, train=scoring.compares)
    reward = scoring.reward(splits.train["responses"].flat, gold)
    rows = {name: rows_of(examples) for name, examples in named.items()}
    labelled = options.rows == LABELS or not reward.names
    if labelled:
        scored, notes = _as_stored(rows, stored, bool(reward.names))
    else:
        for name in named:
            if not np.isnan(stored[name]).all():
                _check_stored(name, rows[name], stored[name], reward, options, context)
            if name not in options.stored:
                stored[name] = np.full(len(rows[name]), np.nan)
        scored, notes = _score_rows(rows, stored, reward, context)
    for note in notes:
        context.say(note)
    for name in options.best:
        scored[name] = _best(name, scored[name], context)
    names = () if labelled else reward.names
    transform = fit_transform(options.transform, options.clip, scored["train"]["reward"])
    scored = {name: _with(transform, name, t, names, context) for name, t in scored.items()}
    low, high = _bounds(scored["train"]["reward"], None if labelled else reward.ends, transform)
    of_answers, agreed = transform, None
    if labelled and reward.names:
        of_answers, agreed = _compared(scored, reward, (low, high), options, context)
    elif options.distil and low < high:  # equal rewards are refused once the objective is known
        of_answers = line_to(low, high, slope=high - low, start=low)
    return ScoredSplits(
        train=scored["train"],
        validation=scored["validation"],
        test=scored["test"],
        component_names=names,
        max_reward=high,
        notes=(*splits.notes, *notes),
        gold=gold,
        min_reward=low,
        transform=transform,
        of_answers=of_answers,
        agreement=agreed,
    )


def _bounds(
    train: np.ndarray, ends: tuple[float, float] | None, transform: RewardTransform
) -> tuple[float, float]:
    """Return the smallest and the largest reward that is possible.

    Args:
        train: the training rewards, transformed: their ends stand where anything is possible.
        ends: of the scorers, before the transform; None if there is none.
    """
    low, high = float(train.min()), float(train.max())
    if ends is None:
        return low, high
    possible = transformed(transform, np.array(ends))
    return tuple(np.where(np.isfinite(possible), possible, (low, high)).tolist())


def _with(
    transform: RewardTransform,
    split: str,
    rows: Table[Scored],
    names: Sequence[str],
    context: StageContext,
) -> Table[Scored]:
    """The rows with their rewards transformed."""
    found = rows.replace(reward=transformed(transform, rows["reward"]))
    check_in_float32(found)
    context.say(_summary(split, found, names))
    return found


def _as_stored(
    rows: Mapping[str, Table[Scored]], stored: Mapping[str, np.ndarray], scorers: bool
) -> tuple[dict[str, Table[Scored]], tuple[str, ...]]:
    """The rows with their stored rewards, and what is odd about these."""
    way_out = (
        "and config.score.rows='labels' takes the stored ones: give all rows a 'reward'"
        if scorers
        else "and every reward weight is 0: give all rows a 'reward', or one of the rewards a "
        "weight above 0"
    )
    for name, its_rows in rows.items():
        check_all_stored(name, its_rows, stored[name], way_out)
    notes = []
    for name, its_rows in rows.items():
        notes += far_notes(name, its_rows, stored[name], stored["train"])
        notes += same_text_notes(name, its_rows, stored[name])
    return {name: its_rows.replace(reward=stored[name]) for name, its_rows in rows.items()}, (
        *notes,
    )


def _compared(
    scored: Mapping[str, Table[Scored]],
    reward: rewards.Reward,
    bounds: tuple[float, float],
    options: ConfigDict,
    context: StageContext,
) -> tuple[RewardTransform, Agreement]:
    """Score labelled rows: the line from scores to labels, and the agreement of the two.

    The line, labels = start + slope · scores by least squares, is fitted to training rows; the
    agreement is that on validation and test rows.

    Raises:
        UserError: the scorers order the rows against the labels, or the labels are all equal.
    """
    some = {name: _sample(table, options.compared) for name, table in scored.items()}
    run = functools.partial(_in_pieces, context)
    found = {name: reward.score(t["prompt"], t["response"], run=run)[1] for name, t in some.items()}
    labels, scores = some["train"]["reward"], found["train"]
    names, correlation = _join(reward.names), pearson(scores, labels)
    if not correlation > 0:
        why = f"correlation {correlation:.2f}"
        if np.isnan(correlation):
            why = "one of the two is the same for all"
        raise UserError(
            f"config.score.rows='labels': {names} and the labels do not agree on {len(labels)} "
            f"training rows ({why}), so that answers cannot be scored with the one and rows with "
            "the other: name another scorer, or leave the weights of config.rewards at 0"
        )
    slope = correlation * labels.std() / scores.std()
    start = labels.mean() - slope * scores.mean()
    line = line_to(*bounds, slope=float(slope), start=float(start))
    held = concatenate([some["validation"], some["test"]])
    scores = np.concatenate([found["validation"], found["test"]])
    agreed = agreement(
        names,
        scores,
        held["reward"],
        held["example_id"].codes(),
        held["response"],
        on_scale=transformed(line, scores),
    )
    if agreed is None:
        raise UserError(
            f"config.score.rows='labels': all {len(held)} held-out labels are {held[0].reward:g}, "
            f"so that nothing shows whether {names} agrees with people"
        )
    context.say(f"{agreed.summary()}; its mean is {agreed.bias:+.3f} from that of the labels")
    context.say(
        f"labels = {start:.3f} + {slope:.3f} · score, fitted to {len(labels)} training rows, is "
        f"the reward of an answer: {agreed.remaining:+.3f} from the held-out labels"
    )
    return line, agreed


def _sample(rows: Table[Scored], most: int) -> Table[Scored]:
    """All rows of evenly spaced prompts, about ``most`` rows."""
    prompts = rows["example_id"].codes()
    count = int(prompts.max()) + 1
    taken = min(count, max(1, round(most * count / len(rows))))
    chosen = np.linspace(0, count - 1, taken).round().astype(int)
    return rows.where(np.isin(prompts, chosen))


def _gold(splits: Splits, *, train: bool) -> Table[Gold]:
    """The gold responses of the prompts, of those of ``train`` only if it is true."""
    tables = [gold_of(splits.validation), gold_of(splits.test)]
    if train:
        tables.append(splits.gold if len(splits.gold) else gold_of(splits.train))
    return concatenate(tables)


def _best(split: str, rows: Table[Scored], context: StageContext) -> Table[Scored]:
    """Keep the response with the highest reward of each prompt, the first of equal ones.

    Where a prompt is repeated, every repetition that holds this response keeps it.
    """
    prompts, texts, paid = rows["prompt"].codes(), rows["response"].codes(), rows["reward"]
    order, first = best_first(prompts, paid)
    best = order[first][prompts]  # of the prompt of each row
    kept = np.flatnonzero((texts == texts[best]) & (paid == paid[best]))
    examples = rows["example_id"].codes()[kept]
    kept = kept[np.sort(np.unique(examples, return_index=True)[1])]
    context.say(f"{split}: the best response to each prompt stays, {len(kept)} of {len(rows)}")
    return rows.take(kept)


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
            "gave them; if people gave them, config.score.rows='labels' lets them stand for the "
            f"rows, and {reward.names[0]} scores the answers; or {way_out}"
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
    low, bound = reward.components[0].low, reward.components[0].bound
    outside = (stored < low) | (stored > bound)  # False where there is none
    if outside.any():
        place = int(np.argmax(outside))
        raise UserError(
            f"{rows[place].example_id}: the stored reward is {stored[place]}, {reward.names[0]} "
            f"scores from {low:.4g} to {bound:.4g}: {way_out}"
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
