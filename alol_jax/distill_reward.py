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
import time
from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.main import CONFIG, entry
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.paths import AnyPath, path_of
from alol_jax.reports.agreement import agreement
from alol_jax.reports.results import EVERY
from alol_jax.rewards.distilled import Description, check_output_folder, save_distilled
from alol_jax.runs.progress import say
from alol_jax.stages.load import check_splits, counter_of, read_splits
from alol_jax.tables.columns import Texts
from alol_jax.tables.table import Table
from alol_jax.tasks.registry import get_task
from alol_jax.training import distillation
from alol_jax.training.distillation import check_options, describe, distil_head
from alol_jax.types import Agreement, Example, Watch

_OUT = flags.DEFINE_string("out", None, "The folder to create for the reward model.")


class Rows(NamedTuple):
    """Responses with a stored reward."""

    prompt: Texts
    response: Texts
    reward: np.ndarray  # f64[rows]
    example: np.ndarray  # i64[rows], index of the prompt
    source: np.ndarray  # str[rows]


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


def agreement_on(predicted: np.ndarray, rows: Rows) -> Agreement | None:
    """Compare f64[rows] predictions with the stored rewards; None if these are all equal."""
    return agreement(
        "the new model", predicted, rows.reward, rows.example, rows.response, on_scale=predicted
    )


def distil(
    config: ConfigDict, lm: LanguageModel, out: AnyPath
) -> tuple[Description, dict[str, Agreement | None]]:
    """Fit, evaluate and save the reward model.

    Returns:
        What was saved, and the agreement on all test rows and on those of each source.

    Raises:
        UserError: ``out`` exists, or all test rewards are equal; also see `rows_of` and
            `distil_head`.
    """
    check_output_folder(out)
    check_options(config.distill, lm.transformer.config.width)
    task = get_task(config.task)
    splits = check_splits(
        task, read_splits(task, config.task, counter_of(lm, task, config.task)), say
    )
    named = {
        split: rows_of(split, getattr(splits, split)) for split in ("train", "validation", "test")
    }
    described = describe(lm, task, config.distill)
    fitted = distil_head(
        lm,
        described,
        task.exchange,
        config.distill,
        {split: distillation.Rows(*rows[:3]) for split, rows in named.items()},
        seed=config.seed,
        watch=Watch("distill", say),
    )
    say(
        f"epoch {fitted.epoch} of {config.distill.epochs}: mean squared error {fitted.mse:.5f} on "
        "the validation rows"
    )
    test, predicted = named["test"], fitted.predicted
    found = {EVERY: agreement_on(predicted, test)}
    for source in sorted(set(test.source)):
        where = np.flatnonzero(test.source == source)
        found[str(source)] = agreement_on(predicted[where], _take(test, where))
    every = found[EVERY]
    if every is None:
        raise UserError(
            f"all {len(predicted)} stored test rewards are equal: nothing shows whether the model "
            "learned anything: split off more test rows (config.task.test)"
        )
    figures = {name: getattr(every, name) for name in ("pearson", "spearman", "mse")}
    described = dataclasses.replace(
        described, figures=figures | {"rows": len(named["train"].reward)}
    )
    save_distilled(out, described, fitted.head)
    return described, found


def _take(rows: Rows, where: np.ndarray) -> Rows:
    return Rows(
        rows.prompt.take(where),
        rows.response.take(where),
        rows.reward[where],
        rows.example[where],
        rows.source[where],
    )


def table(found: dict[str, Agreement | None]) -> str:
    """The agreement as aligned text, one line per set of rows."""
    head = f"{'test rows':<22}{'rows':>6}{'Pearson':>9}{'Spearman':>10}{'R²':>8}"
    lines = [f"{head}{'pairs ordered alike':>24}{'by length':>11}"]
    for name, one in found.items():
        if one is None:
            lines.append(f"{name[:22]:<22}  one reward for all: nothing to compare")
            continue
        order = f"{one.order.mean:.3f} [{one.order.low:.3f}, {one.order.high:.3f}]"
        gained = 1 - one.mse / one.variance
        pearson, spearman = ("-" if x is None else f"{x:.3f}" for x in (one.pearson, one.spearman))
        lines.append(
            f"{name[:22]:<22}{one.rows:>6}{pearson:>9}{spearman:>10}{gained:>8.3f}"
            f"{order:>24}{one.by_length:>11.3f}"
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
