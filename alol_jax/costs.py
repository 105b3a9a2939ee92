"""What fitting a policy took: tokens, operations in closed form, seconds."""

from __future__ import annotations

import collections
from collections.abc import Callable

import numpy as np

from alol_jax import flops
from alol_jax.batches import Items
from alol_jax.language_model import LanguageModel
from alol_jax.types import Cost


def cost_of_fit(
    lm: LanguageModel,
    items: Items,
    at: Callable[[int], np.ndarray],
    *,
    steps: int,
    accumulate: int,
    seconds: float,
) -> Cost:
    """The cost of ``steps`` optimizer steps.

    Args:
        at: step -> the items of all its micro-batches.
        accumulate: micro-batches of a step.
        seconds: measured.

    Returns:
        Cost: a prompt counts with each of its responses, because it is read with each.
    """
    length = np.array([len(row.prompt) + len(row.response) for row in items.rows])
    of_item = length[items.members].sum(axis=1)
    tokens, rows_of = 0, collections.Counter[tuple[int, int]]()
    for step in range(steps):
        chosen = at(step)
        tokens += int(of_item[chosen].sum())
        shape = items.shapes[int(items.shape[chosen].max())]
        rows_of[shape] += len(chosen) * items.members.shape[1]
    micro = items.members.shape[1] * len(at(0)) // accumulate if steps else 0
    work = sum(step_flops(lm, shape, rows, micro) for shape, rows in rows_of.items())
    return Cost(tokens, work, seconds)


def step_flops(lm: LanguageModel, shape: tuple[int, int], rows: int, micro: int) -> float:
    """Forward and backward pass of ``rows`` rows of ``shape``, ``micro`` of them at a time."""
    trained, frozen = lm.abstract()
    prompt, response = shape
    one = flops.forward(
        {**frozen, **trained},
        lm.transformer.config,
        rows=rows,
        width=prompt + response,
        head_tokens=rows * response,
    )
    return flops.step(
        one,
        all_train=lm.transformer.lora is None,
        remat=lm.transformer.remat,
        head_again=micro * response > lm.logprob_chunk,
    )
