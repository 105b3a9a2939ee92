"""evaluate_reference: the reference on the test rows, once for all policies that start from it."""

from __future__ import annotations

from alol_jax.decoding.answers import Setup
from alol_jax.training.on_test_rows import on_test_rows
from alol_jax.types import OnTestRows, Policy, ScoredSplits, StageContext


def evaluate_reference(
    setup: Setup, scored: ScoredSplits, reference: Policy, *, context: StageContext
) -> OnTestRows:
    """Answer the test prompts with the reference, as `on_test_rows` does."""
    return on_test_rows(setup, scored, "reference", reference, context)
