"""The sections of the report about training: logged curves and validation scores."""

from __future__ import annotations

import numpy as np

from alol_jax.objectives.registry import get_objective
from alol_jax.reports import figures
from alol_jax.reports.page import Figure, Section
from alol_jax.reports.stored_rewards import rests_on
from alol_jax.training.metrics import METRICS
from alol_jax.types import Agreement, Policy, RunSummary

OPTIMIZER_STEP = "optimizer step"
TRAINING = {
    "loss": "loss",
    "kl_to_reference": "KL to the reference (nats)",
    "accuracy": "accuracy",
    "margin": "margin",
    "score": "reward of the rollouts",
    "kl_to_anchor": "KL to the anchor (nats)",
    "kl_coef": "KL coefficient",
    "response_length": "tokens per response",
    "policy_loss": "policy loss",
    "value_loss": "value loss",
    "explained_variance": "explained variance of the values",
}
WEIGHTS = {
    "fraction_clipped": "clipped fraction",
    "effective_sample_size": "effective sample size (0 to 1)",
    "ratio_mean": "mean ratio π / π_ref",
}
"""Logged metric -> its axis label; captions come from ``metrics.METRICS``."""
SYMLOG = ("kl_to_reference",)  # spans magnitudes: a single far response outweighs all others


def step_name(summary: RunSummary) -> str:
    """What a step of the policy's training is called."""
    return "rollout" if get_objective(summary.objective).online else OPTIMIZER_STEP


def training(policy: Policy, summary: RunSummary, agreement: Agreement | None = None) -> Section:
    """The policy's validation scores and training curves."""
    over = step_name(summary)
    drawn = _validations(policy, "policy", over) + _curves(policy, TRAINING, "policy", over)
    text = (_tokens(policy),) if drawn else ("The policy's training logged nothing.",)
    text += tuple(f"The kept step was chosen by: {metric}." for metric in chosen_by(policy))
    text += rests_on(agreement)
    return Section("training", "Training of the policy", text, figures=tuple(drawn))


def chosen_by(policy: Policy) -> tuple[str, ...]:
    """The names of the scores that chose the step: one, or none if nothing was validated."""
    return tuple(dict.fromkeys(one.metric for one in policy.validations))


def weights(policy: Policy, summary: RunSummary) -> Section:
    """Statistics of the importance weights, or why there are none."""
    logged = {curve.name for curve in policy.curves}
    text = []
    if "fraction_clipped" not in logged:
        text.append(
            f"No clipped fraction: the objective {summary.objective} has no importance ratio."
        )
    if "effective_sample_size" not in logged:
        text.append(
            f"No effective sample size: the objective {summary.objective} does not weight "
            "responses."
        )
    drawn = _curves(policy, WEIGHTS, "policy", step_name(summary))
    return Section("weights", "Importance weights", tuple(text), figures=tuple(drawn))


def reference_fit(reference: Policy) -> Section:
    """The reference's validation scores and training curves."""
    drawn = _validations(reference, "reference", OPTIMIZER_STEP)
    drawn += _curves(reference, TRAINING, "reference", OPTIMIZER_STEP)
    text = (_tokens(reference),) if drawn else ("The training of the reference logged nothing.",)
    return Section("reference", "Training of the reference", text, figures=tuple(drawn))


def _tokens(policy: Policy) -> str:
    """How many tokens were trained on, and how much padding there was."""
    cost = policy.cost
    if not cost.computed:
        return "How many tokens it was trained on was not logged."
    return (
        f"It was trained on {cost.tokens:,} tokens, a token counted each time. Of the tokens that "
        f"were computed {cost.real:.0%} are real; the rest is padding."
    )


def _validations(policy: Policy, colour: str, over: str) -> list[Figure]:
    """The validation scores, one figure per metric."""
    drawn = []
    for metric in dict.fromkeys(one.metric for one in policy.validations):
        points = [one for one in policy.validations if one.metric == metric]
        svg = figures.validation(
            np.array([one.step for one in points]),
            np.array([one.score for one in points]),
            label=metric,
            over=over,
            colour=colour,
            chosen=policy.step,
        )
        caption = f"On validation prompts; larger is better. The ringed {over} was kept."
        drawn.append(Figure("Validation", svg, caption))
    return drawn


def _curves(policy: Policy, labels: dict[str, str], colour: str, over: str) -> list[Figure]:
    """The metrics of ``labels`` that were logged, in that order."""
    logged = {curve.name: curve for curve in policy.curves if curve.steps}
    drawn = []
    for name in (name for name in labels if name in logged):
        steps, values = np.array(logged[name].steps), np.array(logged[name].values)
        svg = figures.curve(
            steps,
            values,
            label=labels[name],
            over=over,
            colour=colour,
            chosen=policy.step,
            symlog=name in SYMLOG,
        )
        caption = f"{METRICS[name]} Pale: as logged; bold: running mean."
        title = labels[name].split(" (")[0]
        drawn.append(Figure(title[0].upper() + title[1:], svg, caption))
    return drawn
