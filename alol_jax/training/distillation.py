"""Fitting a small scorer to the rewards of rows: a value head on a frozen base, over both texts."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import LanguageModel
from alol_jax.rewards.distilled import Description, base_fingerprint, encode, reader_of
from alol_jax.runs.progress import progress
from alol_jax.training.head_fit import Features, HeadFitter, features_of, make_head_fitter
from alol_jax.types import Exchange, Params, Task, Watch


class Rows(NamedTuple):
    """Responses with a reward."""

    prompt: Sequence[str]
    response: Sequence[str]
    reward: np.ndarray  # f64[rows], in [0, 1]


class Fitted(NamedTuple):
    """The head of the best epoch, and what it says of the test rows."""

    head: Params
    epoch: int
    mse: float  # on the validation rows
    predicted: np.ndarray  # f64[test rows], in (0, 1)


def describe(lm: LanguageModel, task: Task, options: ConfigDict) -> Description:
    """Describe a scorer on the base of ``lm``, before it is fitted.

    Args:
        options: ``config.distill``.
    """
    model: dict[str, Any] = dict(lm.options) | {"adapter": ""}
    return Description(
        template=task.template,
        marks=task.marks,
        date=task.date,
        limits=tuple(lm.limits),
        heads=options.heads,
        base=base_fingerprint(lm),
        model=model,
        figures={},
    )


def distil_head(
    lm: LanguageModel,
    described: Description,
    read: Callable[[str, str], Exchange],
    options: ConfigDict,
    named: Mapping[str, Rows],
    *,
    seed: int,
    watch: Watch,
) -> Fitted:
    """Fit a head to the training rows, choose its epoch on the validation rows, try the test rows.

    Args:
        read: from the task: prompt, response -> exchange.
        options: ``config.distill``.
        named: the rows of train, validation and test.

    Raises:
        UserError: the options do not fit the model, the features of the rows do not fit in memory,
            or no epoch has a finite error.
    """
    check_options(options, lm.transformer.config.width)
    _check_memory(lm, named)
    ids = functools.partial(encode, lm, described, read)
    features = {split: _features(lm, ids, rows, watch) for split, rows in named.items()}
    head = ValueHead(lm.transformer.config.width, 1.0, options.heads, options.dropout)
    fitter = make_head_fitter(
        head, options, rows=len(named["train"].reward), mesh=lm.mesh, seed=seed
    )
    params, epoch, mse = _best_epoch(
        fitter, features["train"], features["validation"], options.epochs, watch
    )
    every = np.arange(len(named["test"].reward))
    predicted = fitter.predicted(params, features["test"], every).astype(np.float64)
    return Fitted(jax.device_get(params), epoch, mse, predicted)


def check_options(options: ConfigDict, width: int) -> None:
    """Check the fields of ``config.distill``."""
    for field in ("heads", "epochs", "batch_size"):
        if options[field] < 1:
            raise UserError(f"config.distill.{field}={options[field]} must be 1 or more")
    if width % options.heads:
        raise UserError(
            f"config.distill.heads={options.heads} does not divide the model's width {width}"
        )


def _features(
    lm: LanguageModel, ids: Callable[[str, str], tuple[int, ...]], rows: Rows, watch: Watch
) -> Features:
    return features_of(
        lm,
        reader_of(lm),
        lm.base,
        list(map(ids, rows.prompt, rows.response)),
        rows.reward,
        watch=watch._replace(label="features"),
    )


def _check_memory(lm: LanguageModel, named: Mapping[str, Rows]) -> None:
    """Check that the features of all rows fit in host memory."""
    model, rows = lm.transformer, sum(len(rows.reward) for rows in named.values())
    needed = rows * sum(lm.limits) * model.config.width * np.dtype(model.dtype).itemsize
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.7 * installed:
        raise UserError(
            f"the features of these rows take up to {needed / 2**30:.0f} GiB, this machine has "
            f"{installed / 2**30:.0f}: take fewer rows (config.task.limit), shorter ones "
            "(config.model.max_prompt, max_response) or a smaller model"
        )


def _best_epoch(
    fitter: HeadFitter, train: Features, validation: Features, epochs: int, watch: Watch
) -> tuple[Params, int, float]:
    """The head of the epoch with the lowest error on the validation rows, its number and error."""
    every, held = np.arange(len(train.reward)), np.arange(len(validation.reward))
    best, kept, chosen = np.inf, None, 0
    watch = watch._replace(label="epochs")
    for epoch, params in progress(fitter.epochs(train, every, epochs), watch, total=epochs + 1):
        error = fitter.predicted(params, validation, held) - validation.reward
        mse = float(np.mean(error * error))
        if mse < best:
            best, kept, chosen = mse, jax.device_get(params), epoch
    if kept is None:
        raise UserError("no epoch has a finite error: lower config.distill.optimizer.learning_rate")
    return kept, chosen, best
