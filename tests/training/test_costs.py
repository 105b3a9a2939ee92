"""What fitting took: tokens counted by hand, operations as those of the steps."""

import numpy as np
import pytest
from alol_jax.training.costs import cost_of_fit, step_flops

from alol_jax.training.batches import ranked_items, single_items
from tests.tiny_run import SHAPES, annotated, annotated_rows, tiny_lm

LM = tiny_lm()
SIZES = ((3, 2), (30, 20), (16, 8))
ROWS = annotated_rows(annotated(n, prompt=p, response=r) for n, (p, r) in enumerate(SIZES))


def at(step):
    """Two items a step: the small ones, then the long one twice."""
    return np.array([[0, 2], [1, 1]][step % 2])


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_tokens_and_operations_add_up_over_the_steps(steps):
    items = single_items(ROWS, SHAPES)
    cost = cost_of_fit(LM, items, at, steps=steps, accumulate=1, seconds=2.5)
    small, large = (steps + 1) // 2, steps // 2
    assert cost.tokens == small * (3 + 2 + 16 + 8) + large * 2 * (30 + 20)
    expected = small * step_flops(LM, SHAPES[0], 2, 2) + large * step_flops(LM, SHAPES[1], 2, 2)
    assert cost.flops == pytest.approx(expected) and cost.seconds == 2.5


def test_a_prompt_counts_once_with_all_of_its_responses():
    pair = annotated_rows(annotated(n, prompt=3, response=2 + n, example_id="a") for n in range(2))
    items = ranked_items(pair, SHAPES, 2, "reward", "dpo").items
    cost = cost_of_fit(LM, items, lambda step: np.array([0]), steps=1, accumulate=1, seconds=0.0)
    assert cost.tokens == 3 + 2 + 3
    together, apart = step_flops(LM, SHAPES[0], 1, 1, 2), step_flops(LM, SHAPES[0], 2, 2)
    assert cost.flops == pytest.approx(together)
    p, r = SHAPES[0]
    assert together / apart == pytest.approx((p + 2 * r) / (2 * (p + r)), rel=0.05)


def test_twice_the_rows_are_twice_the_operations_and_logits_in_pieces_are_made_again():
    one = step_flops(LM, SHAPES[1], 4, 4)
    assert step_flops(LM, SHAPES[1], 8, 4) == pytest.approx(2 * one)
    assert step_flops(LM, SHAPES[1], 4, 10_000) > one
