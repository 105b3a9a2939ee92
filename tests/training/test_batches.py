"""Batches: which rows, when, how often, and as which arrays."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.training.batches import (
    collate,
    priority_draw,
    ranked_items,
    read_ahead,
    shuffled,
    single_items,
    tokenise,
)
from tests.tiny_run import (
    SHAPES,
    TASK,
    annotated,
    annotated_rows,
    mesh_of,
    scored_rows,
    scored_table,
    tiny_lm,
)

THREE_SHAPES = ((4, 4), (8, 4), (8, 8))


def _of_lengths(*lengths: tuple[int, int]):
    return annotated_rows(annotated(n, prompt=p, response=r) for n, (p, r) in enumerate(lengths))


def _mixed(small: int, middle: int, large: int):
    """Items of three shapes."""
    rows = _of_lengths(*[(3, 2)] * small, *[(7, 3)] * middle, *[(2, 8)] * large)
    return single_items(rows, THREE_SHAPES)


def _orders(items, size, steps):
    everything = np.ones(len(items.members), bool)
    weights = np.arange(1, len(items.members) + 1, dtype=float)
    return {
        "shuffled": lambda seed: shuffled(items, everything, size=size, seed=seed, steps=steps),
        "priority": lambda seed: priority_draw(
            items, weights / weights.sum(), size=size, seed=seed
        ),
    }


@pytest.mark.parametrize("kind", ["shuffled", "priority"])
def test_a_batch_is_a_pure_function_of_seed_and_step(kind):
    make = _orders(_mixed(9, 6, 5), size=4, steps=40)[kind]
    forwards, backwards = make(0), make(0)
    first = {step: forwards(step) for step in range(40)}
    for step in reversed(range(40)):
        np.testing.assert_array_equal(backwards(step), first[step])
    np.testing.assert_array_equal(make(0)(31), first[31])  # the first question a resumed run asks
    assert any((make(1)(step) != first[step]).any() for step in range(40))


def test_a_longer_run_begins_like_a_shorter_one():
    items = _mixed(9, 6, 5)
    short = _orders(items, 4, 10)["shuffled"](3)
    long = _orders(items, 4, 50)["shuffled"](3)
    for step in range(10):
        np.testing.assert_array_equal(short(step), long(step))


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_kept_item_comes_equally_often_across_shapes(epochs):
    items = _mixed(12, 8, 4)
    keep = np.ones(24, bool)
    keep[[0, 1, 2, 3, 12, 13, 14, 15]] = False  # 8, 4 and 4 are left: batches of 4 divide them
    at = shuffled(items, keep, size=4, seed=0, steps=4 * epochs)
    counts = np.bincount(np.concatenate([at(s) for s in range(4 * epochs)]), minlength=24)
    np.testing.assert_array_equal(counts, epochs * keep)


def test_an_epoch_that_batches_do_not_divide_is_off_by_at_most_one_batch_per_shape():
    items, size, steps = _mixed(13, 7, 5), 4, 50
    at = shuffled(items, np.ones(25, bool), size=size, seed=0, steps=steps)
    for done in (7, 20, steps):
        counts = np.bincount(np.concatenate([at(s) for s in range(done)]), minlength=25)
        for shape in range(3):
            of_shape = counts[items.shape == shape]
            assert of_shape.max() - of_shape.min() <= 1
            assert abs(of_shape.sum() - done * size * len(of_shape) / 25) <= size


def test_epochs_have_different_orders():
    items = single_items(_of_lengths(*[(3, 2)] * 16), THREE_SHAPES)
    at = shuffled(items, np.ones(16, bool), size=16, seed=0, steps=3)
    assert len({tuple(at(step).tolist()) for step in range(3)}) == 3


def test_a_batch_has_one_shape():
    items = _mixed(9, 6, 5)
    for make in _orders(items, 4, 60).values():
        at = make(0)
        seen = [set(items.shape[at(step)]) for step in range(60)]
        assert all(len(shapes) == 1 for shapes in seen)
        assert set.union(*seen) == {0, 1, 2}


def test_priority_draws_each_item_with_its_probability():
    items = _mixed(6, 4, 3)
    probability = np.arange(13, dtype=float) ** 2  # item 0 never
    probability[[7, 11]] = 0.0
    probability /= probability.sum()
    size, steps = 8, 2500
    at = priority_draw(items, probability, size=size, seed=0)
    counts = np.bincount(np.concatenate([at(s) for s in range(steps)]), minlength=13)
    assert counts[probability == 0].sum() == 0
    # Within its shape an item's count is multinomial: χ² with (items − 1) degrees of freedom.
    for shape in range(3):
        inside = (items.shape == shape) & (probability > 0)
        share = probability[inside] / probability[inside].sum()
        expected = share * counts[inside].sum()
        statistic = ((counts[inside] - expected) ** 2 / expected).sum()
        freedom = inside.sum() - 1
        assert statistic < freedom + 5 * np.sqrt(2 * freedom)
        # Batches, not items, choose the shape: 5 standard deviations of a binomial of ``steps``.
        mass = probability[inside].sum()
        bound = 5 * np.sqrt(mass * (1 - mass) / steps)
        assert abs(counts[inside].sum() / (size * steps) - mass) < bound


def test_a_shape_without_probability_is_never_drawn():
    items = _mixed(3, 3, 3)
    probability = (items.shape == 1) / 3
    at = priority_draw(items, probability, size=5, seed=0)
    assert {int(items.shape[i]) for step in range(50) for i in at(step)} == {1}


def test_priority_draws_what_numpy_would_choose():
    items, size, seed = _mixed(6, 4, 3), 8, 5
    probability = np.arange(13, dtype=float) ** 2 / 650  # item 0 never
    pools = [np.flatnonzero((items.shape == shape) & (probability > 0)) for shape in range(3)]
    mass = np.array([probability[pool].sum() for pool in pools])
    at = priority_draw(items, probability, size=size, seed=seed)
    for step in range(200):
        rng = np.random.default_rng([seed, step])
        pool = pools[rng.choice(len(pools), p=mass / mass.sum())]
        weights = probability[pool]
        expected = rng.choice(pool, size=size, p=weights / weights.sum())
        np.testing.assert_array_equal(at(step), expected)


def test_an_item_takes_the_smallest_shape_that_holds_it():
    rows = _of_lengths((4, 4), (5, 4), (1, 5), (8, 8))
    items = single_items(rows, tuple(reversed(THREE_SHAPES)))
    assert [items.shapes[s] for s in items.shape] == [(4, 4), (8, 4), (8, 8), (8, 8)]


# several responses per prompt


def _prompts(*rewards: tuple[float, ...]):
    numbers = itertools.count()
    return annotated_rows(
        annotated(next(numbers), example_id=f"prompt{n}", reward=reward)
        for n, those in enumerate(rewards)
        for reward in those
    )


def ranked(rows, responses, ranking="reward"):
    """The items of K responses."""
    return ranked_items(rows, THREE_SHAPES, responses, ranking, "dpo").items


@pytest.mark.parametrize(
    ("responses", "expected"),
    [(2, [8.0, 0.0]), (3, [8.0, 4.0, 0.0]), (5, [8.0, 6.0, 4.0, 2.0, 0.0])],
)
def test_ranked_items_take_the_best_the_worst_and_evenly_spaced_ones(responses, expected):
    rows = _prompts((3.0, 8.0, 1.0, 0.0, 7.0, 4.0, 2.0, 6.0, 5.0))
    items = ranked(rows, responses)
    assert [[rows[i].reward for i in member] for member in items.members] == [expected]


def test_prompts_with_equal_rewards_or_too_few_responses_give_no_item():
    rows = _prompts((1.0, 1.0, 1.0), (2.0,), (0.0, 3.0, 0.0), (4.0, 5.0))
    items = ranked(rows, 2)
    assert [[rows[i].reward for i in member] for member in items.members] == [
        [3.0, 0.0],
        [5.0, 4.0],
    ]


def test_rows_of_a_prompt_need_not_stand_together():
    rows = _prompts((1.0, 2.0), (3.0, 4.0))
    items = ranked(rows.take([0, 2, 1, 3]), 2)
    assert items.members.tolist() == [[2, 0], [3, 1]]


def test_no_prompt_with_different_rewards_is_one_clear_line():
    said = "dpo needs 2 responses .* of 2 prompts 1 have fewer responses and 1 equal rewards"
    with pytest.raises(UserError, match=said):
        ranked(_prompts((1.0, 1.0), (2.0,)), 2)


# arrays


def test_collate_pads_prompts_left_and_responses_right_with_masks_from_lengths():
    rows = [
        annotated(0, prompt=3, response=2, advantage=0.75),
        annotated(1, prompt=1, response=4, advantage=-2.0, reward=-1.5),
    ]
    rows[0] = dataclasses.replace(rows[0], response=(9, 258))  # ends with what pads
    items = single_items(annotated_rows(rows), ((4, 4),))
    batch = collate(items, np.array([1, 0]), pad_id=258)
    p, r = rows[0].prompt, rows[1].response
    np.testing.assert_array_equal(batch.tokens.prompt, [[258] * 3 + [*rows[1].prompt], [258, *p]])
    np.testing.assert_array_equal(batch.tokens.prompt_mask, [[0, 0, 0, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(batch.tokens.response, [[*r], [9, 258, 258, 258]])
    np.testing.assert_array_equal(batch.tokens.mask, [[1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(
        batch.ref_logp, np.float32([rows[1].ref_logp, (*rows[0].ref_logp, 0, 0)])
    )
    np.testing.assert_array_equal(batch.reward, np.float32([-1.5, 0.0]))
    np.testing.assert_array_equal(batch.advantage, np.float32([0.0, 0.75]))  # clamped at 0
    assert {leaf.dtype.name for leaf in jax.tree.leaves(batch)} == {"int32", "float32"}


def test_a_table_without_reference_annotations_gives_zeros():
    items = single_items(annotated_rows([annotated(0, ref_logp=())]), ((4, 4),))
    np.testing.assert_array_equal(collate(items, np.array([0]), pad_id=0).ref_logp, [[0.0] * 4])


@pytest.mark.parametrize("responses", [2, 3])
def test_k_responses_share_one_prompt_row(responses):
    rows = _prompts((1.0, 5.0, 3.0), (2.0, 9.0, 4.0))
    items = ranked(rows, responses)
    batch = collate(items, np.array([1, 0, 1]), pad_id=0)
    p, r = THREE_SHAPES[0]
    assert batch.tokens.prompt.shape == batch.tokens.prompt_mask.shape == (3, p)
    assert batch.tokens.response.shape == batch.tokens.mask.shape == (3, responses, r)
    assert batch.ref_logp.shape == (3, responses, r)
    assert batch.reward.shape == batch.advantage.shape == (3, responses)
    for place, item in enumerate([1, 0, 1]):
        for k, index in enumerate(items.members[item]):
            row = rows[index]
            assert tuple(batch.tokens.response[place, k, : len(row.response)]) == row.response
            assert batch.reward[place, k] == row.reward
        best = rows[items.members[item][0]]
        assert tuple(batch.tokens.prompt[place, -len(best.prompt) :]) == best.prompt


@pytest.mark.parametrize("accumulate", [1, 2])
def test_read_ahead_gives_the_collated_batches_of_any_stretch_of_steps(accumulate):
    items = _mixed(9, 6, 5)
    at = shuffled(items, np.ones(20, bool), size=8, seed=0, steps=12)
    batches = read_ahead(items, at, accumulate, 0, mesh_of(4, fsdp=2))
    for start, stop in ((0, 12), (5, 9), (11, 12), (12, 12)):
        got = list(batches(start, stop))
        assert len(got) == stop - start
        for step, batch in zip(range(start, stop), got, strict=True):
            expected = collate(items, at(step), pad_id=0)
            for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True):
                assert ours.shape[:2] == (accumulate, 8 // accumulate)
                np.testing.assert_array_equal(np.concatenate(np.asarray(ours)), theirs)
                assert len(ours.sharding.device_set) == 4


# from text


def test_tokenise_keeps_order_and_texts_and_counts_what_it_cut():
    lm = tiny_lm()
    rows = list(scored_rows(4))
    rows[2] = dataclasses.replace(rows[2], response="x" * 100, prompt="y" * 99)
    rows = scored_table(rows)
    ready, cut = tokenise(rows, TASK.template, lm.tokenizer, SHAPES)
    assert cut == (1, 1)
    assert cut.summary(4, SHAPES) == (
        "4 rows; truncated: 1 prompts to 32 tokens (at the start), 1 responses to 24 (no end token)"
    )
    assert [row.response_text for row in ready] == [row.response for row in rows]
    assert [row.reward for row in ready] == [row.reward for row in rows]
    lengths = collections.Counter((len(r.prompt) <= 32, len(r.response) <= 24) for r in ready)
    assert lengths == {(True, True): 4}
    assert lm.tokenizer.decode(ready[0].response) == rows[0].response
    assert [row.response[-1] == lm.tokenizer.eos_id for row in ready] == [True, True, False, True]
    assert ready[2].prompt == (257, *b"y" * 30, 258)  # the template stays whole
    assert tokenise(rows[:2], TASK.template, lm.tokenizer, SHAPES)[1] == (0, 0)
