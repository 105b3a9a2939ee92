"""Distil stored rewards into a small reward model, for when a large one does not fit.

    python -m alol_jax.distill_reward --config=configs/hha.py:size=smollm2 --out=rewards/small \
        --config.task.train_files="('helpful_base.jsonl',)" …

Fits a value head over prompt and response, on the frozen base of ``config.model``, to the stored
rewards of the training rows. The best epoch is chosen on the validation rows, and the result is
measured on the test rows. All stored rewards must come from one scorer, those of the test rows too
(HHA's test files have a different one than its training files: split test rows off instead). To
use the model, add an entry with this path to ``config.reward_models``. A run on the same base then
needs no second model.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.main import CONFIG, entry
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.paths import AnyPath, path_of
from alol_jax.reports.results import EVERY
from alol_jax.reports.statistics import bootstrap, pearson, spearman
from alol_jax.rewards.distilled import (
    Description,
    base_fingerprint,
    check_output_folder,
    encode,
    reader_of,
    save_distilled,
)
from alol_jax.runs.progress import progress, say
from alol_jax.stages.load import check_splits, counter_of, read_splits
from alol_jax.tables.columns import Texts
from alol_jax.tables.table import Table
from alol_jax.tasks.registry import get_task
from alol_jax.training.head_fit import Features, HeadFitter, features_of, make_head_fitter
from alol_jax.types import Example, Interval, Params, Watch

_OUT = flags.DEFINE_string("out", None, "The folder to create for the reward model.")

DRAWS, CONFIDENCE = 10_000, 0.95


class Rows(NamedTuple):
    """Responses with a stored reward."""

    prompt: Texts
    response: Texts
    reward: np.ndarray  # f64[rows]
    example: np.ndarray  # i64[rows], index of the prompt
    source: np.ndarray  # str[rows]


class Agreement(NamedTuple):
    """How well predictions agree with the stored rewards."""

    rows: int
    pearson: float
    spearman: float
    mse: float
    variance: float  # the error of always predicting the mean
    pairs: Interval | None  # accuracy on pairs of responses to a prompt; None without pairs
    by_length: float  # the same accuracy if the longer response is always preferred


def rows_of(split: str, examples: Table[Example]) -> Rows:
    """The responses of a split as rows.

    Raises:
        UserError: a response has no stored reward, or one outside [0, 1].
    """
    responses, rewards = examples["responses"], examples["rewards"]
    missing = rewards.lengths == 0
    owner = np.repeat(np.arange(len(examples)), responses.lengths)
    reward = np.full(len(owner), np.nan)
    reward[~missing[owner]] = rewards.flat
    wrong = ~((reward >= 0) & (reward <= 1))
    if wrong.any():
        place = int(np.argmax(wrong))
        stored = "missing" if missing[owner[place]] else reward[place]
        raise UserError(
            f"{split} example {examples[int(owner[place])].id!r}: the stored reward is {stored}: "
            "a reward model is distilled from stored rewards between 0 and 1"
        )
    prompts, sources = examples["prompt"].take(owner), np.array(list(examples["source"]))[owner]
    return Rows(prompts, responses.flat, reward, owner, sources)


def agreement(predicted: np.ndarray, rows: Rows) -> Agreement:
    """Compare f64[rows] predictions with the stored rewards.

    A pair is two responses to the same prompt with different stored rewards. It counts ½ if its
    predictions are equal. The interval is a bootstrap over pairs.
    """
    length = np.array([len(text) for text in rows.response], np.float64)
    correct, correct_by_length = _pairs_correct(predicted, rows), _pairs_correct(length, rows)
    pairs = None
    if len(correct):
        pairs = bootstrap(correct, draws=DRAWS, confidence=CONFIDENCE, seed=0)
    return Agreement(
        rows=len(predicted),
        pearson=pearson(predicted, rows.reward),
        spearman=spearman(predicted, rows.reward),
        mse=float(np.mean((predicted - rows.reward) ** 2)),
        variance=float(np.var(rows.reward)),
        pairs=pairs,
        by_length=float(np.mean(correct_by_length)) if len(correct) else float("nan"),
    )


def _pairs_correct(predicted: np.ndarray, rows: Rows) -> np.ndarray:
    """f64[pairs]: 1 if predictions and rewards order the pair alike, ½ for a tie, else 0."""
    found = []
    for example in np.unique(rows.example):
        members = np.flatnonzero(rows.example == example)
        for place, one in enumerate(members):
            for other in members[place + 1 :]:
                wanted = np.sign(rows.reward[one] - rows.reward[other])
                if wanted:
                    got = np.sign(predicted[one] - predicted[other])
                    found.append((1 + wanted * got) / 2)
    return np.array(found)


def distil(
    config: ConfigDict, lm: LanguageModel, out: AnyPath
) -> tuple[Description, dict[str, Agreement]]:
    """Fit, evaluate and save the reward model.

    Returns:
        What was saved, and the agreement on all test rows and on those of each source.

    Raises:
        UserError: ``out`` exists; also see `rows_of`.
    """
    check_output_folder(out)
    _check_options(config.distill, lm.transformer.config.width)
    options, task = config.distill, get_task(config.task)
    splits = check_splits(
        task, read_splits(task, config.task, counter_of(lm, task, config.task)), say
    )
    named = {
        split: rows_of(split, getattr(splits, split)) for split in ("train", "validation", "test")
    }
    model = {k: v for k, v in config.model.to_dict().items() if k != "adapter"} | {"adapter": ""}
    described = Description(
        template=task.template,
        marks=task.marks,
        date=task.date,
        limits=tuple(lm.limits),
        heads=options.heads,
        base=base_fingerprint(lm),
        model=model,
        figures={},
    )
    _check_memory(lm, named)
    read = functools.partial(encode, lm, described, task.exchange)
    features = {split: _features(lm, read, rows) for split, rows in named.items()}
    head = ValueHead(lm.transformer.config.width, 1.0, options.heads, options.dropout)
    fitter = make_head_fitter(
        head, options, rows=len(named["train"].reward), mesh=lm.mesh, seed=config.seed
    )
    params = _best_epoch(fitter, features["train"], features["validation"], options.epochs)
    every = np.arange(len(named["test"].reward))
    predicted = fitter.predicted(params, features["test"], every).astype(np.float64)
    found = {EVERY: agreement(predicted, named["test"])}
    for source in sorted(set(named["test"].source)):
        where = np.flatnonzero(named["test"].source == source)
        found[str(source)] = agreement(predicted[where], _take(named["test"], where))
    figures = {name: getattr(found[EVERY], name) for name in ("pearson", "spearman", "mse")}
    figures["rows"] = len(named["train"].reward)
    described = dataclasses.replace(described, figures=figures)
    save_distilled(out, described, jax.device_get(params))
    return described, found


def _take(rows: Rows, where: np.ndarray) -> Rows:
    return Rows(
        rows.prompt.take(where),
        rows.response.take(where),
        rows.reward[where],
        rows.example[where],
        rows.source[where],
    )


def _features(
    lm: LanguageModel, read: Callable[[str, str], tuple[int, ...]], rows: Rows
) -> Features:
    return features_of(
        lm,
        reader_of(lm),
        lm.base,
        list(map(read, rows.prompt, rows.response)),
        rows.reward,
        watch=Watch("features"),
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


def _check_options(options: ConfigDict, width: int) -> None:
    """Check the fields of ``config.distill``."""
    for field in ("heads", "epochs", "batch_size"):
        if options[field] < 1:
            raise UserError(f"config.distill.{field}={options[field]} must be 1 or more")
    if width % options.heads:
        raise UserError(
            f"config.distill.heads={options.heads} does not divide the model's width {width}"
        )


def _best_epoch(fitter: HeadFitter, train: Features, validation: Features, epochs: int) -> Params:
    """The head of the epoch with the lowest error on the validation rows."""
    every, held = np.arange(len(train.reward)), np.arange(len(validation.reward))
    best, kept = np.inf, {}
    fits = progress(fitter.epochs(train, every, epochs), Watch("epochs"), total=epochs + 1)
    for epoch, params in fits:
        error = fitter.predicted(params, validation, held) - validation.reward
        mse = float(np.mean(error * error))
        if mse < best:
            best, kept, chosen = mse, jax.device_get(params), epoch
    if not kept:
        raise UserError("no epoch has a finite error: lower config.distill.optimizer.learning_rate")
    say(f"epoch {chosen} of {epochs}: mean squared error {best:.5f} on the validation rows")
    return kept


def table(found: dict[str, Agreement]) -> str:
    """The agreement as aligned text, one line per set of rows."""
    head = f"{'test rows':<22}{'rows':>6}{'Pearson':>9}{'Spearman':>10}{'R²':>8}"
    lines = [f"{head}{'pairs ordered alike':>24}{'by length':>11}"]
    for name, one in found.items():
        pairs = "-"
        if one.pairs is not None:
            pairs = f"{one.pairs.mean:.3f} [{one.pairs.low:.3f}, {one.pairs.high:.3f}]"
        gained = 1 - one.mse / one.variance if one.variance > 0 else float("nan")
        lines.append(
            f"{name[:22]:<22}{one.rows:>6}{one.pearson:>9.3f}{one.spearman:>10.3f}{gained:>8.3f}"
            f"{pairs:>24}{one.by_length:>11.3f}"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}: settings go as --config.x.y=value")
    if CONFIG.value is None or not _OUT.value:
        raise UserError("--config and --out are needed: see README.md for a command to copy")
    started, config = time.monotonic(), CONFIG.value
    lm = open_language_model(config.model, make_mesh(**config.mesh))
    lm = lm.for_template(config.task.template)
    _, found = distil(config, lm, path_of(_OUT.value))
    say(table(found))
    say(
        f"done in {time.monotonic() - started:.0f} s; to use it, add an entry with "
        f"path={_OUT.value} to config.reward_models"
    )


if __name__ == "__main__":
    entry(main)
