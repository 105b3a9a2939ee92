"""What the step of the policy is chosen by."""

import dataclasses

import numpy as np
import pytest

from alol_jax.decoding.answers import Setup
from alol_jax.rewards.lexical import meteor
from alol_jax.training.annotate import annotate
from alol_jax.training.items import tokenise
from alol_jax.training.validation import CHOSEN_BY, make_validator
from alol_jax.types import Watch
from tests import wordnet
from tests.tiny_run import (
    TASK,
    context,
    fitted,
    scored_rows,
    scored_splits,
    scored_table,
    scoring,
    small_options,
    tiny_lm,
)

LM = tiny_lm()
ROWS = list(scored_rows(4, "validation"))
MORE = [dataclasses.replace(ROWS[0], response="and another answer")]
SCORED = dataclasses.replace(scored_splits(), validation=scored_table([*ROWS, *MORE]))
TRAINED = fitted(LM).trained


def validator(tmp_path, choose_by, weight=1.0):
    scores = scoring({"positivity": weight})
    stage = Setup(LM, TASK, scores, small_options().decode, 0)
    return make_validator(stage, SCORED, choose_by, context(tmp_path))


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_likelihood_is_the_mean_over_all_tokens_of_the_validation_responses(weight, tmp_path):
    found = validator(tmp_path, "likelihood", weight)
    rows, _ = tokenise(SCORED.validation, TASK, LM.tokenizer, LM.limits)
    logps, _ = annotate(LM, TRAINED, rows, watch=Watch("rows"))
    every = [float(token) for row in logps for token in row]
    assert found.score(TRAINED) == pytest.approx(np.mean(every), rel=1e-5)
    assert found.metric == "logp per token of validation responses"


def test_meteor_is_the_mean_of_the_answers_against_all_responses_to_a_prompt(tmp_path, monkeypatch):
    wordnet.stand_in(monkeypatch)
    answers = ("and another answer", "bad", "a day that was great", "nothing here")
    monkeypatch.setattr("alol_jax.decoding.answers.Sampler.texts", lambda self, ids: answers)
    found = validator(tmp_path, "meteor")
    said = [[ROWS[0].response, "and another answer"], *([row.response] for row in ROWS[1:])]
    scores = list(map(meteor, said, answers))
    assert scores[0] > 0.9 and scores[1] == 0.5 and scores[3] == 0.0
    assert found.score(TRAINED) == pytest.approx(np.mean(scores))
    assert found.metric == "mean validation METEOR"


def test_the_whole_reward_and_a_component_are_of_the_answers(tmp_path):
    whole, alone = validator(tmp_path, "", 2.0), validator(tmp_path, "positivity", 2.0)
    assert whole.score(TRAINED) == pytest.approx(2 * alone.score(TRAINED))
    assert alone.metric == "mean validation positivity"


def test_what_can_choose_besides_rewards_is_this():
    assert tuple(CHOSEN_BY) == ("meteor", "likelihood")
