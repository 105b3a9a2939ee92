"""The validation score that selects the best step of a fit. Larger is better."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from alol_jax.decoding.answers import Setup, one_per_prompt, responses_by_prompt
from alol_jax.errors import UserError
from alol_jax.rewards.lexical import meteor
from alol_jax.tables.columns import Ragged
from alol_jax.training.annotate import annotate, divergence_of_answers
from alol_jax.training.fit import Look, Validator
from alol_jax.training.held_out import LIKENESS_GAP, likeness_columns, paid
from alol_jax.training.items import tokenise
from alol_jax.training.pairs import pairs_of
from alol_jax.types import Params, ScoredSplits, StageContext, silent


def make_validator(
    setup: Setup,
    scored: ScoredSplits,
    choose_by: str,
    context: StageContext,
    *,
    reference: Params | None = None,
) -> Validator:
    """Make the validator: the mean reward of deterministic answers to the validation prompts.

    Without a scorer for generated answers, it is the reward-weighted log-likelihood of the
    validation responses instead. What chooses the step is said, with what a scorer is worth that
    did not give the rows' rewards.

    Args:
        choose_by: a component of the reward, to be used alone, or a key of `CHOSEN_BY`; "" = the
            whole reward.
        reference: trained leaves of the reference, to measure the KL of scored answers to it; None
            measures none.

    Raises:
        UserError: there is no scorer, and all validation rewards are equal.
    """
    validator = _validator(setup, scored, choose_by, context, reference)
    rests = ""
    if setup.agreement is not None and choose_by not in CHOSEN_BY:
        rests = f"; {setup.agreement.summary()}"
    context.say(f"the step is chosen by: {validator.metric}{rests}")
    return validator


def _validator(
    setup: Setup,
    scored: ScoredSplits,
    choose_by: str,
    context: StageContext,
    reference: Params | None,
) -> Validator:
    if choose_by in CHOSEN_BY:
        return CHOSEN_BY[choose_by](setup, scored, context)
    reward = setup.reward(scored)
    if not reward.names:
        metric = "reward-weighted logp of validation responses"
        return Validator(metric, _weighted_likelihood(setup, scored, context))
    rows, sampler = one_per_prompt(scored.validation), setup.deterministic_sampler()

    def look(trained: Params) -> Look:
        watch = context.watch("validation answers")
        answers = sampler.answer(trained, rows, reward, key=jax.random.key(0), watch=watch)
        earned = answers["reward"]
        if choose_by:
            earned = answers["components"].matrix[:, reward.names.index(choose_by)]
        if reference is None:
            return Look(float(np.mean(earned)))
        watch = context.watch("KL to the reference")._replace(say=silent)
        both = trained, reference
        kl = divergence_of_answers(setup.lm, setup.task, *both, answers, watch=watch)
        return Look(float(np.mean(earned)), float(np.mean(kl)))

    return Validator(f"mean validation {choose_by or 'reward'}", look)


def _meteor(setup: Setup, scored: ScoredSplits, context: StageContext) -> Validator:
    """The mean METEOR of deterministic answers against the validation responses."""
    rows, sampler = one_per_prompt(scored.validation), setup.deterministic_sampler()
    said = responses_by_prompt(scored.validation)
    references = [said[name] for name in rows["example_id"]]

    def mean_meteor(trained: Params) -> Look:
        watch = context.watch("validation answers")
        answers = sampler.generate(trained, rows["prompt"], key=jax.random.key(0), watch=watch)
        return Look(float(np.mean(list(map(meteor, references, sampler.texts(answers))))))

    return Validator("mean validation METEOR", mean_meteor)


def _likelihood(setup: Setup, scored: ScoredSplits, context: StageContext) -> Validator:
    """Σ logp / Σ tokens of the validation responses: minus the log of their perplexity."""
    logps = _logps(setup, scored, context)
    return Validator(
        "logp per token of validation responses",
        lambda trained: Look(float(logps(trained).flat.mean())),
    )


def _likeness(setup: Setup, scored: ScoredSplits, context: StageContext) -> Validator:
    """The likeness gap of deterministic answers, by the rewards of the validation responses."""
    rows, sampler = one_per_prompt(scored.validation), setup.deterministic_sampler()
    to = paid(scored.validation)
    if not to.gap.any():
        raise UserError(
            "config.policy.choose_by='likeness': no validation prompt has two responses with "
            "different rewards: use 'likelihood'"
        )

    def mean_gap(trained: Params) -> Look:
        watch = context.watch("validation answers")
        answers = sampler.generate(trained, rows["prompt"], key=jax.random.key(0), watch=watch)
        found = likeness_columns(sampler.texts(answers), to)
        return Look(float(found[LIKENESS_GAP].values.mean()))

    return Validator("mean validation likeness gap (chrF++)", mean_gap)


def _order(setup: Setup, scored: ScoredSplits, context: StageContext) -> Validator:
    """The share of the pairs of validation responses that log π per token orders as rewards do."""
    rows = scored.validation
    pairs = pairs_of(rows["example_id"].codes(), rows["reward"])
    if not len(pairs):
        raise UserError(
            "config.policy.choose_by='order': no validation prompt has two responses with "
            "different rewards: use 'likelihood'"
        )
    logps = _logps(setup, scored, context)

    def share(trained: Params) -> Look:
        found = logps(trained)
        return Look(float(pairs.ordered(found.sums() / found.lengths).mean()))

    return Validator("order of validation pairs by logp per token", share)


CHOSEN_BY: dict[str, Callable[[Setup, ScoredSplits, StageContext], Validator]] = {
    "meteor": _meteor,
    "likelihood": _likelihood,
    "likeness": _likeness,
    "order": _order,
}
"""``config.policy.choose_by``, besides the components of the reward -> its validator."""

WITHOUT_ANSWERS = ("likelihood", "order")
"""Those of `CHOSEN_BY` that only read the validation rows."""


def _weighted_likelihood(
    setup: Setup, scored: ScoredSplits, context: StageContext
) -> Callable[[Params], Look]:
    """Return a score: Σ w logp / Σ w over the validation rows, with `likelihood_weights` w."""
    weight, logps = likelihood_weights(scored), _logps(setup, scored, context)
    return lambda trained: Look(float(np.average(logps(trained).sums(), weights=weight)))


def likelihood_weights(scored: ScoredSplits) -> np.ndarray:
    """Return max(reward − mean reward, 0) of the validation rows: f64[rows].

    Raises:
        UserError: all are 0.
    """
    reward = scored.validation["reward"]
    weight = np.maximum(reward - reward.mean(), 0.0)
    if not weight.any():
        raise UserError(
            f"all {len(reward)} validation rewards are equal: there is nothing to select a step "
            "by: set config.policy.choose_by=likelihood, or raise config.task.validation"
        )
    return weight


def _logps(setup: Setup, scored: ScoredSplits, context: StageContext) -> Callable[[Params], Ragged]:
    """Return a function from trained leaves to log π of each token of the validation responses."""
    lm = setup.lm
    rows, cut = tokenise(scored.validation, setup.task, lm.tokenizer, lm.limits)
    context.say(f"validation: {cut.summary(len(rows), lm.limits)}")

    def logps(trained: Params) -> Ragged:
        watch = context.watch("validation rows")._replace(say=silent)
        return annotate(lm, trained, rows, watch=watch)[0]

    return logps
