"""Gold responses: which of the data's responses count as the best."""

from alol_jax.rewards.gold import by_prompt, gold_of
from alol_jax.tables.table import Table
from alol_jax.types import Example, Gold


def gold(*examples):
    return list(gold_of(Table.of(examples, Example)))


def test_the_best_stored_rewards_count_and_without_them_all_responses():
    found = gold(
        Example("a", "p", ("one", "two", "three"), "s", (0.5, 0.9, 0.9)),
        Example("b", "q", ("four", "five"), "s"),
        Example("c", "r", ("six", "seven"), "s", (0.0, -1.0)),
    )
    assert found == [
        Gold("p", ("two", "three")),
        Gold("q", ("four", "five")),
        Gold("r", ("six",)),
    ]
    assert gold() == []


def test_a_reward_that_is_missing_leaves_all_responses():
    found = gold(
        Example("a", "p", ("one", "two"), "s", (0.5,)),
        Example("b", "q", ("three", "four"), "s", (0.1, 0.2)),
    )
    assert found == [Gold("p", ("one", "two")), Gold("q", ("four",))]


def test_examples_of_one_prompt_are_compared_together_and_give_each_text_once():
    found = gold(
        Example("a", "p", ("low", "high"), "s", (0.1, 0.9)),
        Example("b", "q", ("one", "one"), "s"),
        Example("a (time 2)", "p", ("low",), "s", (0.1,)),
        Example("a (time 3)", "p", ("high",), "s", (0.9,)),
        Example("c", "r", ("three",), "s", (5.0,)),
        Example("d", "r", ("four",), "s"),
    )
    assert found == [Gold("p", ("high",)), Gold("q", ("one",)), Gold("r", ("three", "four"))]


def test_examples_of_one_prompt_share_their_gold_responses():
    rows = Table.of([Gold("p", ("a",)), Gold("q", ("b",)), Gold("p", ("c", "d"))], Gold)
    assert by_prompt(rows) == {"p": ("a", "c", "d"), "q": ("b",)}
    assert by_prompt(()) == {}
