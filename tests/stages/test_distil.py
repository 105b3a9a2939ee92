"""distil: a scorer from the rows themselves, refused where it knows no better than chance."""

import dataclasses

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.rewards.distilled import NAME, fitted_scorer
from alol_jax.rewards.transform import line_to
from alol_jax.stages.distil import distil
from alol_jax.training.distillation import describe
from alol_jax.types import ScoredSplits
from tests.tiny_run import TASK, context, scored_rows, scoring, setup, small_options, tiny_lm

LM = tiny_lm()
GOOD, BAD = "aaaa", "zzzz"


def splits(good=5.0, bad=-3.0):
    """Two responses to each prompt: a's earn ``good``, z's ``bad``."""

    def rows(split, prompts):
        ids = [f"{split}{n // 2}" for n in range(2 * prompts)]
        reward = np.resize([good, bad], 2 * prompts)
        made = scored_rows(2 * prompts, split)
        return made.replace(
            example_id=ids, prompt=ids, response=[GOOD, BAD] * prompts, reward=reward
        )

    return ScoredSplits(
        rows("train", 24),
        rows("validation", 6),
        rows("test", 12),
        (),
        max_reward=5.0,
        notes=(),
        min_reward=-3.0,
        of_answers=line_to(-3.0, 5.0, slope=8.0, start=-3.0),
    )


@pytest.fixture(scope="module")
def options():
    chosen = small_options().distill
    chosen.update({"epochs": 8, "batch_size": 8, "dropout": 0.0})
    chosen.optimizer.learning_rate = 1e-2
    return chosen


@pytest.fixture(scope="module")
def fitted(options, tmp_path_factory):
    said = []
    folder = tmp_path_factory.mktemp("distil")
    return distil(LM, TASK, options, 0, splits(), context=context(folder, said=said)), said


def test_it_orders_unseen_rows_as_their_rewards_do_and_says_how_well(fitted):
    found, said = fitted
    assert found.agreement.order.mean == 1 and found.agreement.pairs == 12
    assert found.agreement.pearson > 0.9
    assert any("the distilled scorer orders 100%" in line for line in said)


def test_an_answer_is_rewarded_on_the_scale_of_the_rows(fitted, options):
    found, _ = fitted
    scorer = fitted_scorer(describe(LM, TASK, options), TASK.exchange, LM, found)
    made = setup(LM, TASK, {"positivity": 0.0}, small_options().decode)
    made = made._replace(scoring=scoring({"positivity": 0.0}).only(NAME, scorer))
    reward = made.reward(splits())
    assert reward.names == (NAME,)
    prompts = ["test0", "test1"]
    shares, given = reward.score(prompts, [GOOD, BAD])
    np.testing.assert_allclose(given, -3.0 + 8.0 * shares[:, 0])
    assert given[0] > 3 and given[1] < -1


def test_a_scorer_that_is_right_by_chance_is_refused(options, tmp_path):
    data = splits()
    luck = np.random.default_rng(0).choice([5.0, -3.0], len(data.test))
    data = dataclasses.replace(data, test=data.test.replace(reward=luck))
    with pytest.raises(UserError, match="The interval does not lie above one half"):
        distil(LM, TASK, options, 0, data, context=context(tmp_path))


def test_test_rows_of_one_reward_show_nothing(options, tmp_path):
    data = splits()
    data = dataclasses.replace(data, test=data.test.replace(reward=np.ones(len(data.test))))
    with pytest.raises(UserError, match="all 24 test rewards are 1, so that nothing shows"):
        distil(LM, TASK, options, 0, data, context=context(tmp_path))
