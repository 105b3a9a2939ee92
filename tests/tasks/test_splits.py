"""Splits: no prompt on two sides, whatever the order of the rows."""

import random

import pytest

from alol_jax.errors import UserError
from alol_jax.tables.table import Table
from alol_jax.tasks import splits as splitting
from alol_jax.types import Example, Splits


def _examples(count: int) -> list[Example]:
    return [Example(f"id{n}", f"Prompt {n}?", ("yes",), "s") for n in range(count)]


def _split(examples: list[Example], **counts: int) -> Splits:
    return splitting.split_by_prompt(Table.of(examples, Example), **counts)


def test_a_prompt_is_normalised_for_case_space_and_punctuation_at_the_ends():
    assert splitting.normalise("  Hello,\n\tWORLD!? ") == "hello, world"
    assert splitting.normalise("“It's fine.”") == "it's fine"
    assert splitting.normalise("Straße") == splitting.normalise("STRASSE")


def test_prompts_of_punctuation_alone_stay_apart():
    assert splitting.normalise("?") != splitting.normalise("!")


def test_the_counts_are_counts_of_prompts():
    splits = _split(_examples(100), validation=10, test=20)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [70, 10, 20]


def test_spellings_of_one_prompt_stay_in_one_split():
    shouted = [Example(f"up{n}", f"PROMPT {n}", ("no",), "s") for n in range(100)]
    splits = _split(_examples(100) + shouted, validation=10, test=20)
    sides = [
        {splitting.normalise(example.prompt) for example in side}
        for side in (splits.train, splits.validation, splits.test)
    ]
    assert [len(side) for side in sides] == [70, 10, 20]
    assert len(splits.test) == 40
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_the_order_of_the_rows_changes_nothing():
    shuffled = _examples(50)
    random.Random(0).shuffle(shuffled)
    assert _split(shuffled, validation=5, test=5) == _split(_examples(50), validation=5, test=5)


def test_new_rows_do_not_move_a_test_prompt_to_training_unless_they_take_its_place():
    few = _split(_examples(50), validation=5, test=5)
    many = _split(_examples(60), validation=5, test=5)
    pushed_out = {e.id for e in few.test} - {e.id for e in many.test}
    newcomers = {e.id for e in many.test} - {e.id for e in few.test}
    assert len(pushed_out) == len(newcomers)
    assert newcomers <= {f"id{n}" for n in range(50, 60)}


def test_too_few_prompts_is_a_clear_error():
    with pytest.raises(UserError, match="10 different prompts.*none for training.*lower"):
        _split(_examples(10), validation=5, test=5)


def test_a_negative_count_is_a_clear_error():
    with pytest.raises(UserError, match="task.validation is -1"):
        _split(_examples(10), validation=-1, test=5)
    with pytest.raises(UserError, match="task.limit is -1"):
        splitting.limit_train(_split(_examples(9), validation=1, test=1), -1)


def test_a_limit_keeps_training_examples_only_and_says_so():
    splits = _split(_examples(50), validation=5, test=5)
    limited = splitting.limit_train(splits, 7)
    assert limited.train == splits.train[:7]
    assert (limited.validation, limited.test) == (splits.validation, splits.test)
    assert limited.notes == ("task.limit kept 7 of 40 training examples.",)
    assert splitting.limit_train(splits, 0) == splits
    assert splitting.limit_train(splits, 40) == splits


def test_grouping_joins_responses_and_rewards_and_keeps_the_first_wording():
    rows = [
        Example("a", "Hi", ("one",), "s", (0.5,)),
        Example("b", "Bye", ("two",), "s", (0.25,)),
        Example("c", "hi!", ("three",), "t", (0.75,)),
    ]
    names = [splitting.normalise(row.prompt) for row in rows]
    assert splitting.group_by_prompt(Table.of(rows, Example), names) == (
        Example("a", "Hi", ("one", "three"), "s", (0.5, 0.75)),
        Example("b", "Bye", ("two",), "s", (0.25,)),
    )
