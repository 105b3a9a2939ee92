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


@pytest.mark.parametrize(
    "field", [{"policy__choose_by": "meteor"}, {"evaluate__measures": ("coverage", "meteor")}]
)
def test_meteor_is_refused_where_wordnet_is_missing(field, monkeypatch):
    wordnet.missing(monkeypatch)
    (name,) = field
    said = _refused(**field)
    assert said.startswith(f"config.{name.replace('__', '.')}: METEOR needs WordNet")
    assert "python -m nltk.downloader wordnet" in said
