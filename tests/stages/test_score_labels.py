"""score with rewards as people have them: transforms, labels for rows, and a scorer for answers."""

import dataclasses

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.rewards import reward as rewards
from alol_jax.rewards.transform import transformed
from alol_jax.stages.score import score
from alol_jax.tables.table import Table
from alol_jax.types import Example, RewardSpec, Splits
from configs import common
from tests.tiny_run import context

SPECS = (RewardSpec("long", "length", "{response}", 1.0),)
TEXTS = ("x", "xxxx", "xxxxxxx", "xxxxxxxxx")


@pytest.fixture(autouse=True)
def _scorer(monkeypatch):
    """ "length" is characters / 10."""
    monkeypatch.setitem(
        rewards.SCORERS,
        "length",
        lambda train: lambda texts: np.array([len(one) / 10 for one in texts], np.float64),
    )


def split(name, labels, count=6):
    """Prompts with four responses of rising length; ``labels`` is a function of the length."""
    rows = (
        Example(f"{name}{n}", f"{name} {n}", TEXTS, "web", tuple(labels(len(t), n) for t in TEXTS))
        for n in range(count)
    )
    return Table.of(rows, Example)


def splits(labels=lambda length, n: 2.0 * length - 5.0):
    return Splits(*(split(name, labels) for name in ("train", "validation", "test")), ())


def scored(tmp_path, data, *, weight=0.0, said=None, **options):
    chosen = common.get_config().score
    chosen.update(options)
    scoring = rewards.Scoring(SPECS, {}, {"long": weight})
    return score(scoring, chosen, data, context=context(tmp_path, said=said))


def test_stored_rewards_below_0_are_taken_as_they_are(tmp_path):
    found = scored(tmp_path, splits())
    assert found.train["reward"][:4].tolist() == [-3.0, 3.0, 9.0, 13.0]
    assert (found.min_reward, found.max_reward) == (-3.0, 13.0)
    assert found.of_answers == found.transform and found.agreement is None


def test_the_transform_is_fitted_to_the_training_rows_and_applied_to_every_split(tmp_path):
    data = dataclasses.replace(splits(), test=split("test", lambda length, n: 45.0))
    found = scored(tmp_path, data, transform="minmax")
    assert found.train["reward"][:4].tolist() == [0.0, 0.375, 0.75, 1.0]
    assert set(found.test["reward"]) == {3.0}
    assert (found.min_reward, found.max_reward) == (0.0, 1.0)


def test_the_reward_of_a_scorer_is_transformed_too_and_so_are_its_bounds(tmp_path):
    found = scored(tmp_path, splits(), weight=2.0, transform="standardise")
    raw = 2.0 * np.array([len(text) / 10 for text in found.train["response"]])
    np.testing.assert_allclose(found.train["reward"], (raw - raw.mean()) / raw.std())
    ends = transformed(found.transform, np.array([0.0, 2.0]))
    assert (found.min_reward, found.max_reward) == pytest.approx(tuple(ends))
    assert found.of_answers == found.transform


def test_a_far_reward_and_a_text_with_two_rewards_are_in_the_notes_and_the_log(tmp_path):
    odd = Example("odd", "odd", ("same", "same"), "web", (0.0, 1e26))
    data = splits()
    data = dataclasses.replace(data, train=Table.of([*data.train, odd], Example))
    said = []
    found = scored(tmp_path, data, said=said)
    assert any("odd 'same': 1e+26" in note for note in found.notes)
    assert any("have the prompt and the text of an earlier row" in note for note in found.notes)
    assert set(found.notes) <= set(said)


@pytest.mark.parametrize("reward", [float("inf"), float("-inf"), float("nan")])
def test_a_stored_reward_that_is_no_number_is_one_line(tmp_path, reward):
    data = splits(lambda length, n: reward if (length, n) == (4, 2) else 1.0 * length)
    said = f"train example 'train2': the stored reward is {reward}: expected a finite number"
    with pytest.raises(UserError, match=said):
        scored(tmp_path, data)


def test_scores_in_some_rows_only_are_one_line(tmp_path):
    data = splits()
    some = [*data.train, Example("bare", "bare", ("x",), "web")]
    data = dataclasses.replace(data, train=Table.of(some, Example))
    with pytest.raises(UserError, match=r"'bare' has no stored reward \(1 of 25 rows have none\)"):
        scored(tmp_path, data)
    with pytest.raises(UserError, match="config.score.rows='labels' takes the stored ones"):
        scored(tmp_path, data, weight=1.0, rows="labels")


def noisy(length, n):
    """Labels that rise with the length, each prompt with its own error."""
    return 2.0 * length - 5.0 + np.sin(7.0 * length + n)


def test_labels_stand_for_the_rows_and_the_scorer_for_the_answers(tmp_path):
    said = []
    found = scored(tmp_path, splits(noisy), weight=1.0, rows="labels", said=said)
    labels = [noisy(len(text), n // 4) for n, text in enumerate(TEXTS * 6)]
    np.testing.assert_allclose(found.train["reward"], labels)
    assert found.component_names == ()
    agreed = found.agreement
    assert (agreed.scorer, agreed.rows, agreed.within) == ("long", 48, True)
    assert agreed.order.mean > 0.9 and agreed.pearson > 0.9
    assert agreed.bias == pytest.approx(np.mean([0.525 - x for x in labels]), abs=0.2)
    assert abs(agreed.remaining) < 0.2
    assert any(line.startswith("long orders ") for line in said)


def test_an_answer_is_rewarded_on_the_scale_of_the_labels(tmp_path):
    found = scored(tmp_path, splits(), weight=1.0, rows="labels")
    given = transformed(found.of_answers, np.array([0.1, 0.4, 0.7, 5.0]))
    np.testing.assert_allclose(given, [-3.0, 3.0, 9.0, 13.0])  # the labels of these lengths; most
    assert found.agreement.remaining == pytest.approx(0, abs=1e-9)
    moved = scored(tmp_path, splits(), weight=1.0, rows="labels", transform="minmax")
    given = transformed(moved.of_answers, np.array([0.1, 0.4, 0.7]))
    np.testing.assert_allclose(given, [0.0, 0.375, 0.75])


def test_a_scorer_that_turns_the_labels_around_is_refused(tmp_path):
    data = splits(lambda length, n: -1.0 * length)
    with pytest.raises(UserError, match=r"long and the labels do not agree .*correlation -1.00"):
        scored(tmp_path, data, weight=1.0, rows="labels")


def test_labels_or_scores_that_do_not_vary_show_no_agreement(tmp_path):
    with pytest.raises(UserError, match="one of the two is the same for all"):
        scored(tmp_path, splits(lambda length, n: 1.0), weight=1.0, rows="labels")


def test_held_out_labels_that_are_all_equal_show_nothing(tmp_path):
    held = {name: split(name, lambda length, n: 1.0) for name in ("validation", "test")}
    with pytest.raises(UserError, match="all 48 held-out labels are 1, so that nothing shows"):
        scored(tmp_path, dataclasses.replace(splits(), **held), weight=1.0, rows="labels")


def test_only_some_prompts_are_compared_where_there_are_many(tmp_path):
    found = scored(tmp_path, splits(noisy), weight=1.0, rows="labels", compared=8)
    assert found.agreement.rows == 2 * 2 * 4 and found.agreement.within


def test_what_a_distilled_scorer_will_say_is_a_share_of_the_range(tmp_path):
    found = scored(tmp_path, splits(), distil=True)
    assert transformed(found.of_answers, np.array([0.0, 0.5, 1.0])).tolist() == [-3.0, 5.0, 13.0]
    scored(tmp_path, splits(lambda length, n: 1.0), distil=True)  # what is wrong is said later
