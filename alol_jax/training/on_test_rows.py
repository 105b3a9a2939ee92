"""What a model makes of the test rows: its answers to their prompts, and its log π of them."""

from __future__ import annotations

import jax
import numpy as np

from alol_jax.decoding.answers import Setup, one_per_prompt
from alol_jax.devices.sharding import place_params
from alol_jax.tables.columns import Ragged
from alol_jax.tables.table import Table
from alol_jax.training.annotate import annotate
from alol_jax.training.items import tokenise
from alol_jax.types import OnTestRows, Policy, ResponseLogps, Scored, ScoredSplits, StageContext


def on_test_rows(
    setup: Setup, scored: ScoredSplits, name: str, fitted: Policy, context: StageContext
) -> OnTestRows:
    """Generate and score a model's likeliest answer to every test prompt.

    Where the rewards of the rows are stored ones, its log-probabilities of the test rows are
    computed, too.

    Args:
        name: of the model, for the log.
    """
    answers = setup.deterministic_sampler().answer(
        fitted.trained,
        one_per_prompt(scored.test),
        setup.reward(scored),
        key=jax.random.key(setup.seed),
        watch=context.watch(f"{name} answers"),
    )
    logps = Ragged.empty(0, np.float32)
    if not scored.component_names:
        logps = _logps(setup, scored.test, name, fitted, context)
    return OnTestRows(answers, Table(ResponseLogps, {"logp": logps}))


def _logps(
    setup: Setup, rows: Table[Scored], name: str, fitted: Policy, context: StageContext
) -> Ragged:
    """log π of each row's response, f32[tokens]."""
    lm = setup.lm
    tokens, _ = tokenise(rows, setup.task, lm.tokenizer, lm.limits)
    trained = place_params(fitted.trained, lm.mesh)
    return annotate(lm, trained, tokens, watch=context.watch(f"test rows by the {name}"))[0]
