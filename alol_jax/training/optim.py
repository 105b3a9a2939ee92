"""The optimizer from the config: AdamW, gradient clipping and a learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import optax

from alol_jax.errors import UserError
from alol_jax.types import Params

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SCHEDULES: dict[str, Callable[[float, int, int], optax.Schedule]] = {
    "constant": lambda peak, warmup, steps: optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup), optax.constant_schedule(peak)], [warmup]
    ),
    "linear": lambda peak, warmup, steps: optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
        ],
        [warmup],
    ),
    "cosine": lambda peak, warmup, steps: optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
        ],
        [warmup],
    ),
}
"""(peak learning rate, warm-up steps, total steps) -> step -> learning rate."""


def warmup_warning(options: ConfigDict, steps: int) -> tuple[str, ...]:
    """Return a warning if training ends before the warm-up does; else nothing."""
    if options.warmup < steps:
        return ()
    reached = SCHEDULES[options.schedule](options.learning_rate, options.warmup, steps)(steps - 1)
    return (
        f"the warm-up of {options.warmup} steps is longer than training, {steps} steps: the "
        f"learning rate ends at {float(reached):.2g}, not at {options.learning_rate:g}; lower the "
        "optimizer's warmup",
    )


def make_optimizer(options: ConfigDict, *, steps: int) -> optax.GradientTransformation:
    """Make AdamW with global-norm gradient clipping; moments have the dtype of the parameters.

    Args:
        options: ``learning_rate``, ``schedule`` (a key of `SCHEDULES`), ``warmup`` (steps),
            ``b1``, ``b2``, ``epsilon``, ``weight_decay`` (decoupled, matrices only),
            ``max_grad_norm`` (0 = no clipping).
        steps: optimizer steps of the whole run, at which the schedule ends.
    """
    if options.schedule not in SCHEDULES:
        raise UserError.unknown(
            f"there is no schedule {options.schedule!r}", options.schedule, SCHEDULES
        )
    clip = optax.clip_by_global_norm(options.max_grad_norm)
    return _in_float32(
        optax.chain(
            clip if options.max_grad_norm > 0 else optax.identity(),
            optax.adamw(
                SCHEDULES[options.schedule](options.learning_rate, options.warmup, steps),
                b1=options.b1,
                b2=options.b2,
                eps=options.epsilon,
                weight_decay=options.weight_decay,
                mask=_matrices,
            ),
        )
    )


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return ``tx``, traced with 64-bit types off.

    With ``JAX_ENABLE_X64``, optax computes schedule and bias correction in float64 from the int32
    step, and the last bits of the parameters change.
    """

    def update(updates, state, params=None):
        with jax.enable_x64(False):
            return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


def _matrices(params: Params) -> dict[str, bool]:
    """Mark the leaves that decay: kernels, embeddings and LoRA factors, not norms and biases."""
    return {path: not path.endswith(("/scale", "/bias", "query")) for path in params}
