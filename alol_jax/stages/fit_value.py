"""fit_value: V(x), what the reference can expect for a prompt, on its frozen hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alol_jax.fit import TrainState, Update, fit, init_state, make_update
from alol_jax.language_model import LanguageModel
from alol_jax.models.heads import ValueHead
from alol_jax.optim import make_optimizer
from alol_jax.progress import progress
from alol_jax.sharding import place_like_params, place_params, place_rows
from alol_jax.tokens import to_tokens
from alol_jax.types import (
    Answers,
    Params,
    Policy,
    ScoredSplits,
    StageContext,
    Task,
    UserError,
    Value,
    ValueAudit,
)


class Prompts(NamedTuple):
    """Frozen features of scored prompts, on the host."""

    hidden: np.ndarray  # f32[N, P, D]
    mask: np.ndarray  # f32[N, P]
    reward: np.ndarray  # f32[N]


class Fitter(NamedTuple):
    """What every fold shares: one compiled step and one compiled prediction."""

    head: ValueHead
    tx: object
    update: Update
    predict: object
    batch_size: int
    seed: int


def fit_value(
    lm: LanguageModel,
    task: Task,
    options: ConfigDict,
    seed: int,
    scored: ScoredSplits,
    reference: Policy,
    answers: Answers,
    *,
    context: StageContext,
) -> Value:
    """Minimises mean (V(x) − R)² over the reference's own scored answers.

    The number of epochs is chosen on held-out rows: each of ``options.folds`` parts of the prompts
    is predicted by a head fitted on the others, after every epoch; the epoch with the lowest
    held-out error is used for the final head, fitted on all rows. Epoch 0 (a head that predicts
    the mean) takes part. The audit of a part takes the epoch that is best on the other parts
    (`held_out`): the rows that measure the head do not choose its epoch.

    Args:
        options: ``config.value``.
        seed: of initial weights, dropout, row order and folds.
    """
    data = _features(lm, task, reference, answers, options.batch_size, context.stopping)
    fold = _folds([row.example_id for row in answers.rows], options.folds, seed)
    head = ValueHead(lm.transformer.config.width, scored.max_reward, options.heads, options.dropout)
    steps = options.epochs * -(-len(data.reward) // options.batch_size)
    tx = make_optimizer(options.optimizer, steps=steps)

    def loss_fn(trained, frozen, batch, key):
        error = head(trained, batch.hidden, batch.mask, key) - batch.reward
        mse = jnp.mean(error * error)
        return mse, (jnp.float32(error.shape[0]), {"mse": mse})

    key = jax.random.fold_in(jax.random.key(seed), 3)
    update = make_update(loss_fn, tx, key, _start(head, tx, lm, seed, 0.0))
    fitter = Fitter(head, tx, update, jax.jit(head), options.batch_size, seed)
    curve = np.zeros((options.epochs + 1, len(data.reward)))  # held-out predictions by epoch
    parts = range(options.folds)
    for part in progress(parts, total=len(parts), label="value folds", stopping=context.stopping):
        for epoch, params in _train(fitter, lm, data, np.flatnonzero(fold != part), options.epochs):
            out = np.flatnonzero(fold == part)
            curve[epoch, out] = _predict(fitter, lm, params, data, out)
    predicted, epochs = held_out(curve, data.reward, fold)
    everything = np.arange(len(data.reward))
    *_, (_, params) = _train(fitter, lm, data, everything, epochs)
    audit = _audit(predicted, data, fold, epochs)
    context.say(
        f"{epochs} of {options.epochs} epochs; held-out MSE {audit.mse:.4f}, "
        f"of the mean {audit.mse_of_mean:.4f}, of a line in the length {audit.mse_of_length:.4f}"
    )
    return Value(params, scored.max_reward, audit)


def _features(lm, task, reference, answers, batch_size, stopping) -> Prompts:
    """Hidden states of the prompts under the reference, padded to the largest prompt width."""
    if not answers.rows:
        raise UserError("no answer to fit the value head on: raise config.task.validation")
    width = lm.prompt_widths[-1]
    ids = [lm.tokenizer.prompt(task.template, row.prompt, limit=width) for row in answers.rows]
    tokens = to_tokens(ids, [()] * len(ids), shape=(width, 1), pad_id=lm.tokenizer.pad_id)
    params = {**lm.frozen(), **place_params(reference.trained, lm.mesh)}
    hidden_of = jax.jit(lm.transformer.hidden)
    pieces = []
    batches = _filled_up(np.arange(len(ids)), batch_size)
    for rows, chosen in progress(
        batches, total=len(batches), label="value prompts", stopping=stopping
    ):
        placed = place_rows((tokens.prompt[chosen], tokens.prompt_mask[chosen]), lm.mesh)
        pieces.append(np.asarray(hidden_of(params, *placed), np.float32)[: len(rows)])
    reward = np.array([row.reward for row in answers.rows], np.float32)
    return Prompts(np.concatenate(pieces), tokens.prompt_mask, reward)


def _filled_up(rows: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, the same with repeats up to ``size``) of each batch: one shape to compile for."""
    pieces = (rows[first : first + size] for first in range(0, len(rows), size))
    return [(piece, np.resize(piece, size)) for piece in pieces]


def _folds(example_ids: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """i64[N]: the part of each row; answers to one prompt stay together."""
    names = sorted(set(example_ids))
    if not 2 <= folds <= len(names):
        raise UserError(
            f"config.value.folds={folds} must be from 2 to the {len(names)} validation prompts"
        )
    order = np.random.default_rng([seed, 3]).permutation(len(names))
    part = {names[index]: place % folds for place, index in enumerate(order)}
    return np.array([part[name] for name in example_ids])


def _start(head: ValueHead, tx, lm: LanguageModel, seed: int, mean_reward: float) -> TrainState:
    """Step 0 of a head that predicts about ``mean_reward``, on the mesh."""
    params = head.init(jax.random.fold_in(jax.random.key(seed), 4), mean_reward)
    return place_like_params(init_state(place_params(params, lm.mesh), tx), lm.mesh)


def _train(
    fitter: Fitter, lm: LanguageModel, data: Prompts, rows: np.ndarray, epochs: int
) -> Iterator[tuple[int, Params]]:
    """Yields (epoch, parameters) for epochs 0 … ``epochs`` of a head fitted on ``rows``."""
    state = _start(fitter.head, fitter.tx, lm, fitter.seed, float(data.reward[rows].mean()))
    yield 0, state.trained
    size = fitter.batch_size
    per_epoch = -(-len(rows) // size)

    def batches():
        for epoch in range(epochs):
            order = np.random.default_rng([fitter.seed, epoch]).permutation(rows)
            for first in range(0, per_epoch * size, size):
                chosen = np.take(order, np.arange(first, first + size), mode="wrap")
                batch = jax.tree.map(lambda x, chosen=chosen: x[chosen][None], data)
                yield place_rows(batch, lm.mesh, axis=1)

    for step, reached, _ in fit(state, {}, batches(), fitter.update):
        if step % per_epoch == 0:
            yield step // per_epoch, reached.trained


def _predict(
    fitter: Fitter, lm: LanguageModel, params: Params, data: Prompts, rows: np.ndarray
) -> np.ndarray:
    """f32[rows]: the value of each of ``rows``."""
    pieces = []
    for piece, chosen in _filled_up(rows, fitter.batch_size):
        placed = place_rows((data.hidden[chosen], data.mask[chosen]), lm.mesh)
        pieces.append(np.asarray(fitter.predict(params, *placed))[: len(piece)])
    return np.concatenate(pieces)


def held_out(curve: np.ndarray, reward: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, int]:
    """Predictions that measure the head without favour, and the epochs for a head on all rows.

    The lowest point of a curve is lower than the truth, by luck. So each part is predicted at the
    epoch that is best on the other parts; the epoch that is best on all is only used, not reported.

    Args:
        curve: f64[epochs + 1, N] predictions of each row by a head that was not fitted on it.
        reward: [N].
        fold: i64[N], the part of each row, at least two of them.

    Returns:
        f64[N] and the number of epochs.
    """
    error = (curve - reward) ** 2
    predicted = np.zeros(len(reward))
    for part in np.unique(fold):
        out = fold == part
        predicted[out] = curve[np.argmin(error[:, ~out].mean(axis=1)), out]
    return predicted, int(np.argmin(error.mean(axis=1)))


def _audit(predicted: np.ndarray, data: Prompts, fold: np.ndarray, epochs: int) -> ValueAudit:
    """Held-out errors of the head, of the mean, and of a straight line in the prompt length."""
    observed = data.reward.astype(np.float64)
    length = data.mask.sum(1).astype(np.float64)
    mean, line = np.zeros_like(observed), np.zeros_like(observed)
    for part in np.unique(fold):
        fitted, out = fold != part, fold == part
        mean[out] = observed[fitted].mean()
        slope, intercept = _line(length[fitted], observed[fitted])
        line[out] = slope * length[out] + intercept
    return ValueAudit(
        predicted=tuple(predicted.tolist()),
        observed=tuple(observed.tolist()),
        mse=float(np.mean((predicted - observed) ** 2)),
        mse_of_mean=float(np.mean((mean - observed) ** 2)),
        mse_of_length=float(np.mean((line - observed) ** 2)),
        epochs=epochs,
    )


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares y = slope · x + intercept; slope 0 where x does not vary."""
    spread = np.sum((x - x.mean()) ** 2)
    slope = float(np.sum((x - x.mean()) * (y - y.mean())) / spread) if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())
