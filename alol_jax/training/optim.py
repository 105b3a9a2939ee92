"""The optimizer from the config: an optax chain, its schedule, and what decays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import optax

from alol_jax.types import Params, UserError

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
"""(peak learning rate, warm-up steps, all steps) -> step -> learning rate."""


def late_peak(options: ConfigDict, steps: int) -> tuple[str, ...]:
    """A line for the user where training ends before the warm-up does; else none."""
    if options.warmup < steps:
        return ()
    reached = SCHEDULES[options.schedule](options.learning_rate, options.warmup, steps)(steps - 1)
    return (
        f"the warm-up of {options.warmup} steps is longer than training, {steps} steps: the "
        f"learning rate ends at {float(reached):.2g}, not at {options.learning_rate:g}; lower the "
        "optimizer's warmup",
    )


def make_optimizer(options: ConfigDict, *, steps: int) -> optax.GradientTransformation:
    """AdamW after clipping the global gradient norm; moments in the dtype of the parameters.

    Args:
        options: ``learning_rate``, ``schedule`` (a key of `SCHEDULES`), ``warmup`` (steps),
            ``b1``, ``b2``, ``epsilon``, ``weight_decay`` (decoupled, on matrices only),
            ``max_grad_norm`` (0 = no clipping).
        steps: optimizer steps of the whole run, where the schedule ends.
    """
    if options.schedule not in SCHEDULES:
        raise UserError.unknown(
            f"there is no schedule {options.schedule!r}", options.schedule, SCHEDULES
        )
    clip = optax.clip_by_global_norm(options.max_grad_norm)
    return optax.chain(
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


def _matrices(params: Params) -> dict[str, bool]:
    """Weight decay falls on kernels, embeddings and low-rank factors, not on norms and biases."""
    return {path: not path.endswith(("/scale", "/bias", "query")) for path in params}
