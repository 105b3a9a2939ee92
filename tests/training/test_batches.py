"""Batches: which items, when, how often, and as which arrays."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.training.batches import priority_draw, read_ahead, shuffled, targets_of
from alol_jax.training.grids import packer_of
from alol_jax.training.items import ranked_items, single_items, tokenise
from tests.packed import unpacked
from tests.tiny_run import (
    LIMITS,
    TASK,
    annotated,
    annotated_rows,
    mesh_of,
    scored_rows,
    scored_table,
    tiny_lm,
)


def _items(count: int):
    """Items of different lengths."""
    lengths = [(2 + 5 * n % 19, 1 + 3 * n % 11) for n in range(count)]
    return single_items(
        annotated_rows(annotated(n, prompt=p, response=r) for n, (p, r) in enumerate(lengths))
    )


def _orders(count, size):
    """Both kinds of draws from so many items."""
    weights = np.arange(1, count + 1) / np.arange(1, count + 1).sum()
    return {
        "shuffled": lambda seed: shuffled(np.ones(count, bool), size=size, seed=seed),
        "priority": lambda seed: priority_draw(weights, size=size, seed=seed),
    }


@pytest.mark.parametrize("kind", ["shuffled", "priority"])
def test_a_draw_is_a_pure_function_of_seed_and_step(kind):
    make = _orders(20, size=4)[kind]
    forwards, backwards = make(0), make(0)
    first = {step: forwards(step) for step in range(40)}
    for step in reversed(range(40)):
        np.testing.assert_array_equal(backwards(step), first[step])
    np.testing.assert_array_equal(make(0)(31), first[31])  # the first question a resumed run asks
    assert any((make(1)(step) != first[step]).any() for step in range(40))


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_kept_item_comes_once_an_epoch(epochs):
    keep = np.ones(24, bool)
    keep[[0, 1, 2, 3, 12, 13, 14, 15]] = False
    at = shuffled(keep, size=4, seed=0)
    counts = np.bincount(np.concatenate([at(s) for s in range(4 * epochs)]), minlength=24)
    np.testing.assert_array_equal(counts, epochs * keep)


@pytest.mark.parametrize("size", [4, 60])  # more steps in an epoch than one, and more epochs
def test_at_any_step_two_items_differ_by_at_most_one_draw(size):
    at = shuffled(np.ones(25, bool), size=size, seed=0)
    for done in (1, 7, 20, 50):
        counts = np.bincount(np.concatenate([at(s) for s in range(done)]), minlength=25)
        assert counts.sum() == done * size and counts.max() - counts.min() <= 1


def test_epochs_have_different_orders():
    at = shuffled(np.ones(16, bool), size=16, seed=0)
    assert len({tuple(at(step).tolist()) for step in range(3)}) == 3


def test_items_of_every_length_are_drawn_together():
    lengths = _items(40).rows["prompt"].lengths
    for make in _orders(40, size=8).values():
        at = make(0)
        assert all(len(set(lengths[at(step)])) > 1 for step in range(20))


def test_priority_draws_each_item_with_its_probability():
    probability = np.arange(13, dtype=float) ** 2  # item 0 never
    probability[[7, 11]] = 0.0
    probability /= probability.sum()
    size, steps = 8, 2500
    at = priority_draw(probability, size=size, seed=0)
    counts = np.bincount(np.concatenate([at(s) for s in range(steps)]), minlength=13)
    assert counts[probability == 0].sum() == 0
    # Counts are multinomial: χ² with (items − 1) degrees of freedom.
    expected = size * steps * probability[probability > 0]
    statistic = ((counts[probability > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_priority_draws_what_numpy_would_choose():
    probability = np.arange(13, dtype=float) ** 2 / 650  # item 0 never
    at = priority_draw(probability, size=8, seed=5)
    for step in range(200):
        expected = np.random.default_rng([5, step]).choice(13, size=8, p=probability)
        np.testing.assert_array_equal(at(step), expected)


def test_weights_need_not_add_up_to_one():
    weights = np.arange(9.0)
    one, other = (priority_draw(w, size=8, seed=5) for w in (weights, weights / weights.sum()))
    for step in range(50):
        np.testing.assert_array_equal(one(step), other(step))


# several responses per prompt


def _prompts(*rewards: tuple[float, ...]):
    numbers = itertools.count()
    return annotated_rows(
        annotated(
            number := next(numbers),
            example_id=f"prompt{n}",
            reward=reward,
            response_text=f"r{number}",
        )
        for n, those in enumerate(rewards)
        for reward in those
    )


def ranked(rows, responses, ranking="reward"):
    """The items of K responses."""
    return ranked_items(rows, rows["response_text"], responses, ranking, "dpo").items


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


def test_responses_of_one_text_are_no_pair_and_are_counted():
    rows = _prompts((1.0, 0.0), (5.0, 9.0, 7.0), (3.0, 2.0))
    texts = ["same", "same", "once", "twice", "twice", "one", "other"]
    found = ranked_items(
        rows, rows.replace(response_text=texts)["response_text"], 2, "reward", "dpo"
    )
    assert [[rows[i].reward for i in member] for member in found.items.members] == [
        [9.0, 5.0],
        [3.0, 2.0],
    ]
    assert (found.short, found.again) == (1, 2)
    assert "; 2 responses have the text of a better one" in found.summary(2, "reward")
    assert "better one" not in ranked_items(rows, rows["response_text"], 2, "data", "dpo").summary(
        2, "data"
    )


# arrays


def test_targets_have_masks_from_lengths_and_the_annotations_of_their_rows():
    rows = [
        annotated(0, prompt=3, response=2, advantage=0.75),
        annotated(1, prompt=1, response=4, advantage=-2.0, reward=-1.5),
    ]
    targets = targets_of(single_items(annotated_rows(rows)), np.array([1, 0, 1]), 5)
    first, second = [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]
    np.testing.assert_array_equal(targets.mask, [first, second, first])
    logp = np.float32([(*rows[1].ref_logp, 0), (*rows[0].ref_logp, 0, 0, 0)])
    np.testing.assert_array_equal(targets.ref_logp, logp[[0, 1, 0]])
    np.testing.assert_array_equal(targets.reward, np.float32([-1.5, 0.0, -1.5]))
    np.testing.assert_array_equal(targets.advantage, np.float32([-2.0, 0.75, -2.0]))
    assert {leaf.dtype.name for leaf in targets} == {"float32"}


def test_a_table_without_reference_annotations_gives_zeros():
    items = single_items(annotated_rows([annotated(0, ref_logp=())]))
    np.testing.assert_array_equal(targets_of(items, np.array([0]), 4).ref_logp, [[0.0] * 4])


@pytest.mark.parametrize("responses", [2, 3])
def test_k_responses_share_one_prompt(responses):
    rows = _prompts((1.0, 5.0, 3.0), (2.0, 9.0, 4.0))
    items, chosen = ranked(rows, responses), np.array([1, 0, 1])
    examples, targets = items.examples(chosen), targets_of(items, chosen, 4)
    assert items.longest == 2
    assert targets.mask.shape == targets.ref_logp.shape == (3, responses, 4)
    assert targets.reward.shape == targets.advantage.shape == (3, responses)
    for place, item in enumerate(chosen):
        members = [rows[index] for index in items.members[item]]
        assert tuple(examples.prompts[place]) == members[0].prompt
        assert [tuple(r) for r in examples.responses[place]] == [row.response for row in members]
        assert targets.reward[place].tolist() == [row.reward for row in members]


@pytest.mark.parametrize("responses", [1, 2])
def test_read_ahead_gives_the_items_and_targets_of_any_stretch_of_steps(responses):
    lm = tiny_lm(mesh=mesh_of(4, fsdp=2), rows=4)
    items = _items(20)
    if responses == 2:
        items = items._replace(members=np.arange(20).reshape(10, 2))
    at = shuffled(np.ones(len(items.members), bool), size=7, seed=0)
    packer = packer_of(lm, items, at)
    batches, length = read_ahead(items, at, packer, lm.mesh), items.longest
    for start, stop in ((0, 12), (5, 9), (11, 12), (12, 12)):
        got = list(batches(start, stop))
        assert len(got) == stop - start
        for step, batch in zip(range(start, stop), got, strict=True):
            expected = targets_of(items, at(step), length)
            for ours, theirs in zip(batch.targets, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
            members = items.members[at(step)]
            texts = [
                (items.rows[lead].prompt, items.rows[row].response)
                for lead, row in zip(
                    members[:, :1].repeat(responses, 1).flat, members.flat, strict=True
                )
            ]
            assert unpacked(batch.grids, length) == dict(enumerate(texts))
            for leaf in jax.tree.leaves((batch.grids, batch.targets)):
                assert len(leaf.sharding.device_set) == 4
            assert all(leaf.sharding.is_fully_replicated for leaf in batch.targets)
            assert not any(leaf.sharding.is_fully_replicated for leaf in batch.grids[0])


# from text


def test_tokenise_keeps_order_and_texts_and_counts_what_it_cut():
    lm = tiny_lm()
    rows = list(scored_rows(4))
    rows[2] = dataclasses.replace(rows[2], response="x" * 100, prompt="y" * 99)
    rows = scored_table(rows)
    ready, cut = tokenise(rows, TASK, lm.tokenizer, LIMITS)
    assert cut == (1, 1)
    assert cut.summary(4, LIMITS) == (
        "4 rows; truncated: 1 prompts to 32 tokens (at the start), 1 responses to 24 (no end token)"
    )
    assert [row.response_text for row in ready] == [row.response for row in rows]
    assert [row.reward for row in ready] == [row.reward for row in rows]
    lengths = collections.Counter((len(r.prompt) <= 32, len(r.response) <= 24) for r in ready)
    assert lengths == {(True, True): 4}
    assert lm.tokenizer.decode(ready[0].response) == rows[0].response
    assert [row.response[-1] == lm.tokenizer.eos_id for row in ready] == [True, True, False, True]
    assert ready[2].prompt == (257, *b"y" * 30, 258)  # the template stays whole
    assert tokenise(rows[:2], TASK, lm.tokenizer, LIMITS)[1] == (0, 0)
