"""Weights of sources: training rows that count more than once, and nothing else that changes."""

import collections

import pytest

from alol_jax.errors import UserError
from alol_jax.rewards.gold import by_prompt, gold_of
from alol_jax.stages.load import swap_responses
from tests.tasks.own_data import load, write


def _rows(name, prompts, responses=1):
    return [
        {"prompt": f"{name}{n}", "response": f"{name}{n} r{k}", "reward": k}
        for n in range(prompts)
        for k in range(responses)
    ]


@pytest.fixture
def two(tmp_path):
    """Two files of 20 prompts, the first with two responses each."""
    one = write(tmp_path / "a.jsonl", _rows("a", 20, responses=2))
    return one, write(tmp_path / "b.jsonl", _rows("b", 20))


def _weighted(two, weight, **options):
    return load(f"a:{weight}={two[0]},b={two[1]}", validation=5, test=5, **options)


def _counts(splits):
    """How often each response is among the training rows."""
    return collections.Counter(text for one in splits.train for text in one.responses)


@pytest.mark.parametrize("weight", [1.5, 2, 2.5, 3])
def test_the_rows_of_a_source_are_there_as_often_as_its_weight_says(two, weight):
    plain, found = _weighted(two, 1), _weighted(two, weight)
    before, after = _counts(plain), _counts(found)
    of_a = [text for text in before if text.startswith("a")]
    assert {after[text] for text in before if text.startswith("b")} == {1}
    assert {after[text] for text in of_a} == {int(weight), -int(-weight // 1)}
    assert sum(after[text] for text in of_a) == round(weight * len(of_a))
    added = round((weight - 1) * len(of_a))
    assert f"{two[0]}: its {len(of_a)} training rows have weight {weight:g}: {added} added." in (
        found.notes
    )


def test_no_prompt_moves_to_another_split_and_no_id_is_there_twice(two):
    plain, found = _weighted(two, 1), _weighted(two, 2.5)
    assert found.validation == plain.validation and found.test == plain.test
    assert found.train[: len(plain.train)] == plain.train
    ids = [one.id for split in (found.train, found.validation, found.test) for one in split]
    assert len(ids) == len(set(ids))
    assert _weighted(two, 2.5).train == found.train


def test_the_order_of_the_rows_does_not_choose_which_are_repeated(two, tmp_path):
    found = _counts(_weighted(two, 1.5))
    write(tmp_path / "a.jsonl", _rows("a", 20, responses=2)[::-1])
    assert _counts(_weighted(two, 1.5)) == found


def test_pairs_are_repeated_with_their_rewards(two):
    twice = [one for one in _weighted(two, 2).train if one.id.endswith("(time 2)")]
    assert twice and all(one.rewards == (0.0, 1.0) and one.source == "a" for one in twice)
    assert all(one.responses == (f"{one.prompt} r0", f"{one.prompt} r1") for one in twice)


def test_of_a_prompt_in_two_sources_only_the_rows_of_the_heavier_one_are_repeated(tmp_path):
    one = write(tmp_path / "a.jsonl", _rows("p", 10))
    rows = [{"prompt": f"p{n}", "response": "other", "reward": 2} for n in range(10)]
    found = load(f"a:3={one},b={write(tmp_path / 'b.jsonl', rows)}")
    first, again = found.train[:8], found.train[8:]
    assert all(len(example.responses) == 2 for example in first)
    assert len(again) == 16 and "other" not in {text for e in again for text in e.responses}


@pytest.mark.parametrize("weight", [2, 3.5])
@pytest.mark.parametrize("rewards", [(1, 2), (2, 1), (None, None)])
def test_a_weight_does_not_change_the_gold_responses(weight, rewards, tmp_path):
    files = []
    for name, reward in zip("ab", rewards, strict=True):
        rows = [{"prompt": f"p{n}", "response": f"{name}{n}"} for n in range(10)]
        rows = rows if reward is None else [row | {"reward": reward} for row in rows]
        files.append(write(tmp_path / f"{name}.jsonl", rows))
    plain, found = (load(f"a:{w}={files[0]},b={files[1]}") for w in (1, weight))
    assert len(found.train) > len(plain.train)
    assert gold_of(found.train) == gold_of(plain.train)
    assert by_prompt(swap_responses(found, 1.0).gold) == by_prompt(gold_of(plain.train))


def test_a_limit_counts_prompts_before_they_are_repeated(two):
    found = _weighted(two, 2, limit=6)
    once = [one for one in found.train if "(time" not in one.id]
    assert len(once) == 6
    assert len(found.train) == 6 + sum(one.source == "a" for one in once)


def test_swapped_responses_do_not_stay_with_a_repetition_of_their_prompt(two):
    splits = _weighted(two, 3)
    noisy = swap_responses(splits, 1.0)
    assert not [e for e in noisy.train if any(t.split()[0] == e.prompt for t in e.responses)]
    assert _counts(noisy) == _counts(splits)


def test_only_training_rows_can_be_repeated(two, tmp_path):
    third = write(tmp_path / "c.jsonl", _rows("c", 3))
    with pytest.raises(UserError, match="task.test_file: c:2=.*: only training rows can be read"):
        load(two[0], validation_file=two[1], test_file=f"c:2={third}")


def test_a_weight_works_with_a_file_for_each_split(two, tmp_path):
    third = write(tmp_path / "c.jsonl", _rows("c", 3))
    found = load(f"a:2={two[0]}", validation_file=two[1], test_file=third)
    assert (len(found.train), len(found.validation), len(found.test)) == (40, 20, 3)
