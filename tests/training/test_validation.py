"""What the step of the policy is chosen by."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alol_jax.decoding.answers import Setup, one_per_prompt
from alol_jax.errors import UserError
from alol_jax.rewards.lexical import meteor
from alol_jax.training.annotate import annotate, divergence
from alol_jax.training.items import tokenise
from alol_jax.training.validation import CHOSEN_BY, make_validator
from alol_jax.types import Agreement, Interval, Watch
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
    assert found.look(TRAINED).score == pytest.approx(np.mean(every), rel=1e-5)
    assert found.metric == "logp per token of validation responses"


def test_meteor_is_the_mean_of_the_answers_against_all_responses_to_a_prompt(tmp_path, monkeypatch):
    wordnet.stand_in(monkeypatch)
    answers = ("and another answer", "bad", "a day that was great", "nothing here")
    monkeypatch.setattr("alol_jax.decoding.answers.Sampler.texts", lambda self, ids: answers)
    found = validator(tmp_path, "meteor")
    said = [[ROWS[0].response, "and another answer"], *([row.response] for row in ROWS[1:])]
    scores = list(map(meteor, said, answers))
    assert scores[0] > 0.9 and scores[1] == 0.5 and scores[3] == 0.0
    assert found.look(TRAINED).score == pytest.approx(np.mean(scores))
    assert found.metric == "mean validation METEOR"


def test_the_whole_reward_and_a_component_are_of_the_answers(tmp_path):
    whole, alone = validator(tmp_path, "", 2.0), validator(tmp_path, "positivity", 2.0)
    assert whole.look(TRAINED).score == pytest.approx(2 * alone.look(TRAINED).score)
    assert alone.metric == "mean validation positivity"


def test_the_kl_is_that_of_the_answers_to_the_reference(tmp_path):
    stage = Setup(LM, TASK, scoring({"positivity": 1.0}), small_options().decode, 0)
    make = functools.partial(make_validator, stage, SCORED, "", context(tmp_path))
    other = fitted(LM, 1).trained
    here = make(reference=TRAINED).look(TRAINED)
    apart = make(reference=other).look(TRAINED)
    assert make().look(TRAINED) == (here.score, None)
    assert here.kl == pytest.approx(0.0, abs=1e-6) and apart.kl > 0.01
    asked = one_per_prompt(SCORED.validation)
    answers = stage.deterministic_sampler().answer(
        TRAINED, asked, stage.reward(SCORED), key=jax.random.key(0), watch=Watch("answers")
    )
    rows, _ = tokenise(answers, TASK, LM.tokenizer, LM.limits)
    per_answer = divergence(LM, TRAINED, other, rows, watch=Watch("rows"))
    assert apart.kl == pytest.approx(np.mean(per_answer))


def test_what_can_choose_besides_rewards_is_this():
    assert tuple(CHOSEN_BY) == ("meteor", "likelihood", "likeness", "order")


PAIR = [
    dataclasses.replace(ROWS[n], example_id="one", prompt="one?", response=text, reward=reward)
    for n, (text, reward) in enumerate((("bad", 0.0), ("a great day", 3.0)))
]
PAIRED = dataclasses.replace(SCORED, validation=scored_table([*PAIR, *ROWS[2:]]))


def chosen_by(tmp_path, name, scored=PAIRED, **changes):
    said = []
    stage = Setup(LM, TASK, scoring({"positivity": 0.0}), small_options().decode, 0)
    made = make_validator(stage._replace(**changes), scored, name, context(tmp_path, said=said))
    return made, said


def test_order_is_the_share_of_pairs_that_logp_per_token_orders_as_rewards_do(tmp_path):
    found, said = chosen_by(tmp_path, "order")
    rows, _ = tokenise(scored_table(PAIR), TASK, LM.tokenizer, LM.limits)
    bad, great = (row.mean() for row in annotate(LM, TRAINED, rows, watch=Watch("rows"))[0])
    assert found.look(TRAINED).score == float(great > bad)
    assert said[-1] == f"the step is chosen by: {found.metric}"


def test_likeness_is_the_lean_of_the_answers_to_the_best_paid_response(tmp_path, monkeypatch):
    found, _ = chosen_by(tmp_path, "likeness")
    for answer, sign in (("a great day", 1), ("bad", -1)):
        texts = (answer, "x", "y")
        monkeypatch.setattr("alol_jax.decoding.answers.Sampler.texts", lambda s, i, t=texts: t)
        assert np.sign(found.look(TRAINED).score) == sign


@pytest.mark.parametrize("name", ["likeness", "order"])
def test_a_measure_of_pairs_needs_a_pair(tmp_path, name):
    alone = dataclasses.replace(SCORED, validation=scored_table(ROWS))
    said = f"choose_by='{name}': no validation prompt has two responses with different rewards"
    with pytest.raises(UserError, match=said):
        chosen_by(tmp_path, name, alone)


def test_what_a_scorer_is_worth_is_said_with_what_chooses_the_step(tmp_path):
    order = Interval(0.75, 0.6, 0.9)
    agreed = Agreement("rm", 24, 12, True, order, 0.5, None, None, 0.1, 0.0, 0.1, 0.2)
    scores = scoring({"positivity": 1.0})
    _, said = chosen_by(tmp_path, "", scoring=scores, agreement=agreed)
    assert said[-1].startswith("the step is chosen by: mean validation reward; rm orders 75% [60%,")
    _, said = chosen_by(tmp_path, "likelihood", scoring=scores, agreement=agreed)
    assert "rm orders" not in said[-1]
