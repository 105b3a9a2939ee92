"""The cost of fitting a policy: tokens, FLOPs in closed form, seconds."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from alol_jax.models.language_model import LanguageModel
from alol_jax.training import flops
from alol_jax.training.batches import Items
from alol_jax.types import Branches, Cost, Policy


def with_cost(
    policy: Policy,
    lm: LanguageModel,
    items: Items,
    at: Callable[[int], np.ndarray],
    *,
    steps: int,
    accumulate: int,
) -> Policy:
    """Return ``policy`` with the cost of its fit (`cost_of_fit`); keeps its measured seconds."""
    cost = cost_of_fit(
        lm, items, at, steps=steps, accumulate=accumulate, seconds=policy.cost.seconds
    )
    return dataclasses.replace(policy, cost=cost)


def cost_of_fit(
    lm: LanguageModel,
    items: Items,
    at: Callable[[int], np.ndarray],
    *,
    steps: int,
    accumulate: int,
    seconds: float,
) -> Cost:
    """Return the cost of ``steps`` optimizer steps.

    A prompt shared by K responses is read once and counts once.

    Args:
        at: step -> the items of all its micro-batches.
        accumulate: micro-batches per step.
        seconds: the measured time.
    """
    responses = items.members.shape[1]
    of_item = items.rows["prompt"].lengths[items.members[:, 0]]
    of_item = of_item + items.rows["response"].lengths[items.members].sum(axis=1)
    tokens, prompts_of = 0, collections.Counter[tuple[int, int]]()
    for step in range(steps):
        chosen = at(step)
        tokens += int(of_item[chosen].sum())
        prompts_of[items.shapes[int(items.shape[chosen].max())]] += len(chosen)
    micro = len(at(0)) // accumulate if steps else 0
    work = sum(
        step_flops(lm, shape, prompts, micro, responses) for shape, prompts in prompts_of.items()
    )
    return Cost(tokens, work, seconds)


def step_flops(
    lm: LanguageModel, shape: tuple[int, int], prompts: int, micro: int, responses: int = 1
) -> float:
    """Return the FLOPs of a forward and backward pass.

    Args:
        shape: (P, R).
        prompts: number of prompts; micro: prompts per micro-batch.
        responses: responses per prompt.
    """
    trained, frozen = lm.abstract()
    prompt, response = shape
    one = flops.forward(
        {**frozen, **trained},
        lm.transformer.config,
        rows=prompts,
        width=prompt + responses * response,
        head_tokens=prompts * responses * response,
        branches=Branches(*shape) if responses > 1 else None,
    )
    return flops.step(
        one,
        all_train=lm.transformer.lora is None,
        remat=lm.transformer.remat,
        head_again=micro * responses * response > lm.logprob_chunk,
    )
