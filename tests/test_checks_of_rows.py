"""What scored rows lack for an objective is said before anything is trained."""

import dataclasses

import numpy as np
import pytest

from alol_jax.checks_of_rows import check_scored
from alol_jax.errors import UserError
from alol_jax.objectives.registry import OBJECTIVES, get_objective
from tests.tiny_run import scored_splits, small_options

SCORED = dataclasses.replace(scored_splits(), component_names=())


def checked(objective, scored=SCORED, **fields):
    config = small_options()
    config.rewards.positivity = 0.0
    config.objective.name = objective
    for name, value in fields.items():
        section, key = name.split("__")
        config[section][key] = value
    check_scored(config, get_objective(objective), scored)


def with_rewards(rewards, split="train", **changes):
    rows = getattr(SCORED, split)
    values = np.resize(np.array(rewards, float), len(rows))
    return dataclasses.replace(SCORED, **{split: rows.replace(reward=values, **changes)})


@pytest.mark.parametrize("objective", ["a_lol", "wbc", "r_lol", "a_lol_ref_free", "pro"])
def test_one_reward_for_all_rows_is_said_at_once(objective):
    said = f"all 8 training rewards are 2, and the objective {objective} learns from their diff"
    with pytest.raises(UserError, match=said):
        checked(objective, with_rewards([2.0]))


def test_one_reward_for_all_rows_is_enough_for_nll_but_not_for_a_distilled_scorer():
    checked("nll", with_rewards([2.0]))
    with pytest.raises(UserError, match="and config.score.distil learns from their differences"):
        checked("nll", with_rewards([2.0]), score__distil=True)
    with pytest.raises(UserError, match="and the value head .config.select.columns. learns"):
        checked("nll", with_rewards([2.0]), select__columns=("ref_logp", "advantage"))


@pytest.mark.parametrize("objective", ["wbc", "r_gold", "r_lol"])
def test_weights_below_0_ask_for_a_transform(objective):
    said = r"4 of 8 training rewards are below 0 \(the least is -3\): choose config.score.transform"
    with pytest.raises(UserError, match=said):
        checked(objective, with_rewards([1.0, -3.0]))


def test_the_advantage_and_the_gaps_of_a_ranking_need_no_positive_rewards():
    rewards = with_rewards([-1.0, -3.0])
    for name, objective in OBJECTIVES.items():
        if objective.responses == 1 and not objective.positive and not objective.online:
            checked(name, rewards)
    pairs = with_rewards([-1.0, -3.0], example_id=["a", "a", "b", "b", "c", "c", "d", "d"])
    checked("pro", pairs)


def test_pairs_that_are_not_there_are_missed_at_once():
    with pytest.raises(UserError, match="dpo needs 2 responses of a prompt with different rew"):
        checked("dpo")


def test_pairs_of_one_text_are_no_pairs():
    twice = {"example_id": ["a", "a", "b", "b"] * 2, "response": ["x"] * 8}
    with pytest.raises(UserError, match="a text counts once per prompt"):
        checked("dpo", with_rewards([1.0, 0.0], **twice))


def test_without_a_scorer_the_validation_rewards_must_differ():
    equal = with_rewards([1.0], "validation")
    said = "all 4 validation rewards are equal: .* set config.policy.choose_by=likelihood"
    with pytest.raises(UserError, match=said):
        checked("a_lol", equal)
    checked("a_lol", equal, policy__choose_by="likelihood")
    checked("a_lol", equal, score__distil=True)
    checked("a_lol", equal, rewards__positivity=1.0)
