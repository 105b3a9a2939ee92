"""score: rows with rewards, from the scorers or as stored."""

import dataclasses

import numpy as np
import pytest

from alol_jax import rewards
from alol_jax.stages.score import score
from alol_jax.types import (
    Example,
    Interrupted,
    RewardSpec,
    Scored,
    Splits,
    StageContext,
    Task,
    UserError,
)


@pytest.fixture(autouse=True)
def _scorers(monkeypatch):
    """ "length" is characters / 10; "known" is the share of texts that are training responses."""
    monkeypatch.setitem(
        rewards.SCORERS,
        "length",
        lambda train: lambda texts: np.array([len(one) / 10 for one in texts], np.float64),
    )
    monkeypatch.setitem(
        rewards.SCORERS,
        "known",
        lambda train: lambda texts: np.array([one in train for one in texts], np.float64),
    )


TASK = Task(
    name="toy",
    load=lambda options: None,
    files=lambda options: (),
    template="{prompt}",
    stop=(),
    rewards=(
        RewardSpec("long", "length", "{response}", 1.0),
        RewardSpec("seen", "known", "{response}", 1.0),
    ),
)


def _splits(train_rewards=(), validation_rewards=(), test_rewards=()) -> Splits:
    return Splits(
        train=(Example("a", "p", ("yes", "maybe"), "web", tuple(train_rewards)),),
        validation=(Example("b", "q", ("no",), "web", tuple(validation_rewards)),),
        test=(Example("c", "r", ("yes",), "book", tuple(test_rewards)),),
        notes=("a note",),
    )


def _score(tmp_path, weights, splits, said=None):
    said = [] if said is None else said
    context = StageContext(tmp_path, lambda: False, said.append, False)
    return score(TASK, weights, splits, context=context)


def test_every_response_becomes_a_row_with_its_reward(tmp_path):
    said = []
    scored = _score(tmp_path, {"long": 2.0, "seen": 0.5}, _splits(), said)
    assert scored.component_names == ("long", "seen")
    assert scored.max_reward == 2.5
    assert scored.train == (
        Scored("a", "p", "yes", "web", (0.3, 1.0), 1.1),
        Scored("a", "p", "maybe", "web", (0.5, 1.0), 1.5),
    )
    assert scored.validation == (Scored("b", "q", "no", "web", (0.2, 0.0), 0.4),)
    assert scored.test == (Scored("c", "r", "yes", "book", (0.3, 1.0), 1.1),)
    assert scored.notes == ("a note",)
    assert said == [
        "train: 2 rows, mean reward 1.300 (long 0.400, seen 1.000)",
        "validation: 1 rows, mean reward 0.400 (long 0.200, seen 0.000)",
        "test: 1 rows, mean reward 1.100 (long 0.300, seen 1.000)",
    ]


def test_many_rows_are_scored_in_pieces_as_they_would_be_at_once(tmp_path, monkeypatch):
    splits = dataclasses.replace(
        _splits(), train=tuple(Example(f"{n}", "p", ("x" * (n % 9),), "s") for n in range(17))
    )
    at_once = _score(tmp_path, {"long": 1.0, "seen": 0.5}, splits)
    monkeypatch.setattr("alol_jax.stages.score.PIECE", 5)
    assert _score(tmp_path, {"long": 1.0, "seen": 0.5}, splits) == at_once
    context = StageContext(tmp_path, lambda: True, lambda line: None, False)
    with pytest.raises(Interrupted, match="score: 1 of 6"):
        score(TASK, {"long": 1.0, "seen": 0.5}, splits, context=context)


def test_stored_rewards_are_used_when_all_weights_are_zero(tmp_path):
    said = []
    scored = _score(
        tmp_path, {"long": 0.0, "seen": 0.0}, _splits((0.75, 0.0), (0.5,), (9.0,)), said
    )
    assert [row.reward for row in scored.train] == [0.75, 0.0]
    assert scored.test == (Scored("c", "r", "yes", "book", (), 9.0),)
    assert scored.component_names == ()
    assert scored.max_reward == 0.75  # of the training rows alone
    assert said[0] == "train: 2 rows, mean reward 0.375"


def test_stored_rewards_that_weights_overrule_are_mentioned(tmp_path):
    said = []
    scored = _score(tmp_path, {"long": 1.0, "seen": 0.0}, _splits((5.0, 5.0), (5.0,), (5.0,)), said)
    assert said[0] == "the data's stored rewards are ignored: the weights ask for long"
    assert [row.reward for row in scored.train] == [0.3, 0.5]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (((), (), ()), "train example 'a' has no stored reward and every reward weight is 0"),
        (((1.0, 1.0), (), (1.0,)), "validation example 'b' has no stored reward"),
        (((1.0, float("nan")), (1.0,), (1.0,)), "train example 'a': the stored reward is nan"),
        (((1.0, 1.0), (1.0,), (-0.5,)), "test example 'c': the stored reward is -0.5"),
        (((0.0, 0.0), (1.0,), (1.0,)), "no stored training reward is above 0"),
    ],
)
def test_a_stored_reward_that_cannot_be_used_names_the_example(tmp_path, stored, message):
    with pytest.raises(UserError, match=message):
        _score(tmp_path, {"long": 0.0, "seen": 0.0}, _splits(*stored))


def test_a_weight_for_no_reward_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="'lnog' is no reward of this task: did you mean 'long'"):
        _score(tmp_path, {"lnog": 1.0, "seen": 0.0}, _splits())


def test_a_score_beyond_its_bound_is_a_clear_error(tmp_path):
    splits = Splits(
        (Example("a", "p", ("x" * 11,), "s"),), (Example("b", "q", ("y",), "s"),), (), ()
    )
    with pytest.raises(UserError, match="scorer 'length' gave 1.1 for 'xxxxxxxxxxx'"):
        _score(tmp_path, {"long": 1.0, "seen": 0.0}, splits)
