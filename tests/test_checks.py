"""A config that contradicts itself is refused before the first stage runs, in one line."""

import pytest

from alol_jax.checks import check
from alol_jax.errors import UserError
from alol_jax.objectives.registry import get_objective
from configs import common
from tests import wordnet
from tests.tiny_run import TASK, small_options, tiny_lm

LM = tiny_lm()


def _refused(**fields) -> str:
    config = small_options()
    for name, value in fields.items():
        section, key = name.split("__")
        config[section][key] = value
    with pytest.raises(UserError) as caught:
        check(config, TASK, get_objective(config.objective.name), LM)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pro_needs_two_responses_or_more():
    said = _refused(objective__name="pro", objective__responses=1)
    assert said == "config.objective.responses=1 must be 2 or more"


def test_the_step_can_only_be_chosen_by_a_component_that_is_paid():
    said = _refused(policy__choose_by="positivty")
    assert said == (
        "config.policy.choose_by: 'positivty' has no weight: did you mean 'positivity'?"
    )
    said = _refused(policy__choose_by="positivity", rewards__positivity=0.0)
    assert said.startswith("config.policy.choose_by: 'positivity' has no weight")
    config = small_options()
    config.policy.choose_by = "positivity"
    check(config, TASK, get_objective(config.objective.name), LM)


def test_measures_and_splits_that_do_not_exist_are_named_with_the_near_miss():
    said = _refused(evaluate__measures=("coverage", "densty"))
    assert said == "config.evaluate.measures: no measure 'densty': did you mean 'density'?"
    said = _refused(score__best=("tests",))
    assert said == "config.score.best: no split 'tests': did you mean 'test'?"
    said = _refused(score__stored=("val",))
    assert said.startswith("config.score.stored: no split 'val'")


def test_a_weight_is_named_with_the_section_it_stands_in():
    nothing = {"luck": 1.0}
    assert _refused(rewards__luck=1.0).startswith("config.rewards: 'luck' is no reward of this")
    said = _refused(evaluate__rewards=nothing)
    assert said.startswith("config.evaluate.rewards: 'luck' is no reward of this task")


def test_the_step_is_chosen_by_a_paid_reward_or_by_a_measure():
    said = _refused(policy__choose_by="metor")
    assert said == "config.policy.choose_by: 'metor' has no weight: did you mean 'meteor'?"
    config = small_options()
    for chosen in ("", "positivity", "likelihood"):
        config.policy.choose_by = chosen
        check(config, TASK, get_objective("a_lol"), LM)
    models = {"likelihood": common.reward_model("some/model", reads="response")}
    weights = {"positivity": 1.0, "likelihood": 1.0}
    config.update({"reward_models": models, "rewards": weights})
    with pytest.raises(
        UserError, match="'likelihood' is a measure .* give the reward another name"
    ):
        check(config, TASK, get_objective("a_lol"), LM)


def test_a_filter_that_does_not_fit_objective_or_sampling_is_refused():
    said = _refused(policy__filter="keep")
    assert said == "config.policy.filter: no filter 'keep': did you mean 'kept'?"
    said = _refused(policy__filter="none")
    assert said.startswith("config.policy.sampling='auto' never draws the rows with A ≤ 0")
    said = _refused(policy__filter="kept", objective__name="ppo")
    assert said.startswith("config.policy.filter='kept': ppo trains on its own answers")
    said = _refused(policy__filter="kept", objective__name="nll", select__columns=("ref_logp",))
    assert said == "config.select.columns: nll reads advantage too"
    config = small_options()
    for name, policy_filter, sampling in (
        ("a_lol", "none", "uniform"),
        ("nll", "none", "auto"),
        ("wbc", "kept", "auto"),
        ("ppo", "auto", "auto"),
    ):
        config.objective.name = name
        config.policy.update({"filter": policy_filter, "sampling": sampling})
        check(config, TASK, get_objective(name), LM)


@pytest.mark.parametrize(
    "fields", [{"rewards__positivity": 0.0}, {"policy__choose_by": "likelihood"}]
)
def test_the_kl_of_validations_needs_scored_answers(fields):
    said = _refused(policy__validation_kl=True, **fields)
    assert said.startswith("config.policy.validation_kl is measured on scored validation answers")


def test_a_distilled_scorer_scores_the_answers_whose_kl_is_measured():
    config = small_options()
    config.rewards.update(dict.fromkeys(config.rewards, 0.0))
    config.score.distil, config.policy.validation_kl = True, True
    check(config, TASK, get_objective(config.objective.name), LM)


@pytest.mark.parametrize(
    "field", [{"policy__choose_by": "meteor"}, {"evaluate__measures": ("coverage", "meteor")}]
)
def test_meteor_is_refused_where_wordnet_is_missing(field, monkeypatch):
    wordnet.missing(monkeypatch)
    (name,) = field
    said = _refused(**field)
    assert said.startswith(f"config.{name.replace('__', '.')}: METEOR needs WordNet")
    assert "python -m nltk.downloader wordnet" in said


def test_the_transform_and_the_clip_range_are_checked_before_anything_runs():
    said = _refused(score__transform="rnak")
    assert said == "config.score.transform: no transform 'rnak': did you mean 'rank'?"
    said = _refused(score__clip=(2.0, 1.0))
    assert said.startswith("config.score.clip=(2.0, 1.0): expected two finite numbers, the smaller")
    said = _refused(score__transform="standardise", objective__name="wbc")
    assert "the objective wbc weighs each row by its reward: choose minmax, sigmoid or rank" in said


def test_whose_reward_stands_where_must_hang_together():
    assert _refused(score__rows="label").endswith("did you mean 'labels'?")
    said = _refused(score__rows="labels", rewards__positivity=0.0)
    assert "says that config.rewards score what is generated, and all their weights are 0" in said
    said = _refused(score__rows="labels", score__stored=("train",))
    assert said.startswith("config.score.stored=('train',) says that the scorer gave the stored")
    said = _refused(score__distil=True)
    assert "set the weight of positivity in config.rewards to 0" in said
    said = _refused(score__distil=True, rewards__positivity=0.0, distill__heads=7)
    assert "config.distill.heads=7 does not divide the model's width" in said
    assert "score.compared=0 must be above 0" in _refused(score__compared=0)


def test_a_reward_may_not_have_the_name_of_a_measure_or_of_the_distilled_scorer():
    for name, more in (("order", {}), ("distilled", {"score__distil": True})):
        config = small_options()
        model = common.reward_model("some/model", reads="response")
        config.update({"reward_models": {name: model}, "rewards": {name: 0.0, "positivity": 0.0}})
        config.score.distil = bool(more)
        with pytest.raises(
            UserError, match=f"{name}.* (give the reward another|give yours another)"
        ):
            check(config, TASK, get_objective("a_lol"), LM)
