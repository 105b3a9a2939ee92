"""fit_value: V(x), the reference's expected reward for a prompt, from its hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from alol_jax.devices.sharding import place_params
from alol_jax.errors import UserError
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import LanguageModel
from alol_jax.runs.progress import progress
from alol_jax.text.prompts import encoder_of
from alol_jax.training.head_fit import Features, features_of, make_head_fitter
from alol_jax.types import Answers, Policy, ScoredSplits, StageContext, Task, Value, ValueAudit


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
    """Minimise mean (V(x) − R)² over the reference's own scored answers.

    The number of epochs is chosen by cross-validation over ``options.folds`` folds of the prompts:
    each fold is predicted, after every epoch, by a head fitted on the other folds. The final head
    is fitted on all rows for the number of epochs with the lowest held-out error; 0 epochs (a head
    that predicts the mean) is allowed. In the audit, each fold is predicted at the epoch that is
    best on the other folds (`held_out`), so the rows that test the head never choose its epoch.
    The reference is frozen.

    Args:
        options: ``config.value``.
        seed: for initial weights, dropout, row order and folds.
    """
    watch = context.watch("value prompts")
    data = _features(lm, task, reference, answers, watch)
    fold = folds_of(list(answers.rows["example_id"]), options.folds, seed)
    # Without bounds, a reward model may pay an answer less or more than any training row.
    high = max(scored.max_reward, float(answers.rows["reward"].max()))
    low = min(scored.min_reward, float(answers.rows["reward"].min()))
    width = lm.transformer.config.width
    head = ValueHead(width, high, options.heads, options.dropout, low)
    fitter = make_head_fitter(head, options, rows=len(data.reward), mesh=lm.mesh, seed=seed)
    curve = np.zeros((options.epochs + 1, len(data.reward)))  # held-out predictions by epoch
    parts = range(options.folds)
    for part in progress(parts, context.watch("value folds"), total=len(parts)):
        out = np.flatnonzero(fold == part)
        for epoch, params in fitter.epochs(data, np.flatnonzero(fold != part), options.epochs):
            curve[epoch, out] = fitter.predicted(params, data, out)
    predicted, epochs = held_out(curve, data.reward, fold)
    everything = np.arange(len(data.reward))
    *_, (_, params) = fitter.epochs(data, everything, epochs)
    audit = _audit(predicted, data, fold, epochs)
    context.say(
        f"{epochs} of {options.epochs} epochs; held-out MSE {audit.mse:.4f}, "
        f"of the mean {audit.mse_of_mean:.4f}, of a line in the length {audit.mse_of_length:.4f}"
    )
    return Value(params, high, audit, low)


def _features(lm, task, reference, answers, watch) -> Features:
    """The reference's hidden states for the prompts."""
    if not len(answers.rows):
        raise UserError("no answer to fit the value head on: raise config.task.validation")
    return features_of(
        lm,
        lm.transformer,
        {**lm.frozen(), **place_params(reference.trained, lm.mesh)},
        encoder_of(lm.tokenizer, task, task.conversation)(
            answers.rows["prompt"], limit=lm.limits.prompt
        )[0],
        answers.rows["reward"],
        watch=watch,
    )


def folds_of(example_ids: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """Return i64[N], the fold of each row; answers to the same prompt share a fold.

    Raises:
        UserError: there are more folds than prompts, or less than 2.
    """
    names = sorted(set(example_ids))
    if not 2 <= folds <= len(names):
        raise UserError(
            f"config.value.folds={folds} must be from 2 to the {len(names)} validation prompts"
        )
    order = np.random.default_rng([seed, 3]).permutation(len(names))
    part = {names[index]: place % folds for place, index in enumerate(order)}
    return np.array([part[name] for name in example_ids])


def held_out(curve: np.ndarray, reward: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, int]:
    """Unbiased held-out predictions, and the number of epochs for a head fitted on all rows.

    The minimum of an error curve is optimistic. So each fold is predicted at the epoch that is
    best on the other folds; the epoch that is best on all rows is used but its error not reported.

    Args:
        curve: f64[epochs + 1, N], predictions of each row by a head that was not fitted on it.
        reward: [N].
        fold: i64[N], the fold of each row; at least two folds.

    Returns:
        Predictions f64[N] and the number of epochs.
    """
    error = (curve - reward) ** 2
    predicted = np.zeros(len(reward))
    for part in np.unique(fold):
        out = fold == part
        predicted[out] = curve[np.argmin(error[:, ~out].mean(axis=1)), out]
    return predicted, int(np.argmin(error.mean(axis=1)))


def _audit(predicted: np.ndarray, data: Features, fold: np.ndarray, epochs: int) -> ValueAudit:
    """Held-out errors of the head, the mean, and a linear fit to the prompt length."""
    observed = data.reward.astype(np.float64)
    length = data.length.astype(np.float64)
    mean, line = np.zeros_like(observed), np.zeros_like(observed)
    for part in np.unique(fold):
        fitted, out = fold != part, fold == part
        mean[out] = observed[fitted].mean()
        slope, intercept = _fit_line(length[fitted], observed[fitted])
        line[out] = slope * length[out] + intercept
    return ValueAudit(
        predicted=tuple(predicted.tolist()),
        observed=tuple(observed.tolist()),
        mse=float(np.mean((predicted - observed) ** 2)),
        mse_of_mean=float(np.mean((mean - observed) ** 2)),
        mse_of_length=float(np.mean((line - observed) ** 2)),
        epochs=epochs,
    )


def _fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares y = slope · x + intercept; slope 0 if x does not vary."""
    spread = np.sum((x - x.mean()) ** 2)
    slope = float(np.sum((x - x.mean()) * (y - y.mean())) / spread) if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())
