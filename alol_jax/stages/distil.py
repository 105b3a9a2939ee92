"""distil: a scorer of generated answers, fitted to the stored rewards of the training rows."""

from __future__ import annotations

from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel
from alol_jax.reports.agreement import agreement
from alol_jax.rewards.distilled import NAME, fitted_scorer
from alol_jax.rewards.reward import Scoring
from alol_jax.tables.table import Table
from alol_jax.training.distillation import Rows, describe, distil_head
from alol_jax.types import Distilled, Scored, ScoredSplits, StageContext, Task


def distil(
    lm: LanguageModel,
    task: Task,
    options: ConfigDict,
    seed: int,
    scored: ScoredSplits,
    *,
    context: StageContext,
) -> Distilled:
    """Fit a head on the frozen base to the rewards of the training rows, as shares of their range.

    The epoch is chosen on the validation rows. The scorer is refused unless it orders the test
    rows better than chance.

    Args:
        options: ``config.distill``.
        scored: with ``of_answers``, which turns a share into a reward.

    Raises:
        UserError: the interval of the order on the test rows holds one half, or it cannot be
            measured; see also `distil_head`.
    """
    splits = {"train": scored.train, "validation": scored.validation, "test": scored.test}
    low, high = scored.min_reward, scored.max_reward

    def shares(rows: Table[Scored]) -> Rows:
        share = (rows["reward"] - low) / (high - low)
        return Rows(rows["prompt"], rows["response"], share.clip(0.0, 1.0))

    fitted = distil_head(
        lm,
        describe(lm, task, options),
        task.exchange,
        options,
        {name: shares(rows) for name, rows in splits.items()},
        seed=seed,
        watch=context.watch("distil"),
    )
    test, reward = scored.test, low + (high - low) * fitted.predicted
    found = agreement(
        f"the {NAME} scorer",
        reward,
        test["reward"],
        test["example_id"].codes(),
        test["response"],
        on_scale=reward,
    )
    if found is None:
        raise UserError(
            f"config.score.distil: all {len(test)} test rewards are {test[0].reward:g}, so that "
            "nothing shows whether the scorer learned anything: raise config.task.test"
        )
    context.say(f"epoch {fitted.epoch} of {options.epochs}: {found.summary()}")
    if found.order.low <= 0.5:
        raise UserError(
            f"config.score.distil: {found.summary()}. The interval does not lie above one half, so "
            "that answers would be scored by chance: add rows, or name a reward model, or set "
            "config.score.distil=False"
        )
    return Distilled(fitted.head, fitted.epoch, found)


def scored_by(
    distilled: Distilled, scoring: Scoring, lm: LanguageModel, task: Task, options: ConfigDict
) -> Scoring:
    """Return ``scoring`` with the distilled scorer as the only one of an answer.

    Args:
        options: ``config.distill``.
    """
    scorer = fitted_scorer(describe(lm, task, options), task.exchange, lm, distilled)
    return scoring.only(NAME, scorer)
