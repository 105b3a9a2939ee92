"""fit_value: V(x) finds what the prompt tells about the reward, and nothing where it tells none."""

import dataclasses

import numpy as np
import pytest

from alol_jax.errors import Interrupted, UserError
from alol_jax.models.heads import ValueHead
from alol_jax.stages.fit_value import fit_value, held_out
from alol_jax.types import Answers, Scored
from tests.tiny_run import (
    LIMITS,
    TASK,
    context,
    fitted,
    scored_splits,
    scored_table,
    small_options,
    tiny_lm,
)

LM = tiny_lm()
MAX = 2.0
SCORED = dataclasses.replace(scored_splits(), max_reward=MAX)


def _answers(prompts, rewards) -> Answers:
    rows = zip(prompts, rewards, strict=True)
    return Answers(scored_table(Scored(p, p, "r", "s", (), float(reward)) for p, reward in rows))


def _fit(tmp_path, answers, said=None, stopping=lambda: False, lm=LM, **changes):
    options = small_options().value
    options.update({"folds": 3, "epochs": 4, "batch_size": 8})
    options.optimizer.update({"learning_rate": 3e-3})
    options.update(changes)
    given = context(tmp_path, said=said, stopping=stopping)
    return fit_value(lm, TASK, options, 0, SCORED, fitted(LM), answers, context=given)


def _letters(count):
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abc" if n % 2 else "xyz"), 6)) + str(n) for n in range(count)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The reward is 1.5 for prompts of a, b, c and 0.5 for those of x, y, z."""
    answers = _answers(_letters(36), [1.5 if n % 2 else 0.5 for n in range(36)])
    said = []
    return _fit(tmp_path_factory.mktemp("value"), answers, said, epochs=10), answers, said


def test_what_the_prompt_tells_is_learned_and_holds_for_unseen_prompts(learned):
    value, _, said = learned
    assert value.audit.epochs > 0
    assert value.audit.mse < 0.25 * value.audit.mse_of_mean
    assert value.audit.mse < 0.25 * value.audit.mse_of_length
    assert said[-1].startswith(f"{value.audit.epochs} of 10 epochs; held-out MSE ")


def test_the_final_head_gives_values_between_zero_and_the_largest_reward(learned):
    value, *_ = learned
    hidden = np.random.default_rng(0).normal(size=(5, 7, LM.transformer.config.width)) * 100
    found = ValueHead(64, value.max_value)(value.params, np.float32(hidden), np.ones((5, 7)))
    assert value.max_value == MAX
    assert ((found >= 0) & (found <= MAX)).all() and found.max() > found.min()


def test_the_audit_holds_one_prediction_per_answer(learned):
    value, answers, _ = learned
    assert value.audit.observed == tuple(row.reward for row in answers.rows)
    error = np.subtract(value.audit.predicted, value.audit.observed)
    assert value.audit.mse == pytest.approx(np.mean(error**2))


def test_the_same_inputs_give_the_same_head(tmp_path, learned):
    value, answers, _ = learned
    again = _fit(tmp_path, answers, epochs=10)
    assert again.audit == value.audit
    for path, leaf in value.params.items():
        np.testing.assert_array_equal(again.params[path], leaf)


def test_no_epoch_is_spent_on_a_constant_reward(tmp_path):
    value = _fit(tmp_path, _answers(_letters(18), [0.75] * 18), epochs=2)
    assert value.audit.epochs == 0
    np.testing.assert_allclose(value.audit.predicted, 0.75, rtol=1e-5)
    assert not np.any(value.params["summary/kernel"])  # untouched


def test_a_reward_that_is_noise_is_not_explained(tmp_path):
    explained = []
    for seed in range(4):
        noise = np.random.default_rng(seed).uniform(0, MAX, 24)
        audit = _fit(tmp_path, _answers([f"p{n:02}" for n in range(24)], noise)).audit
        explained.append(1 - audit.mse / audit.mse_of_mean)
        assert audit.mse_of_length == pytest.approx(audit.mse_of_mean)  # the length never varies
    assert np.mean(explained) < 0.02


def test_the_rows_that_measure_the_head_do_not_choose_its_epoch():
    rng, explained = np.random.default_rng(0), []
    fold = np.arange(30) % 5
    for _ in range(300):
        reward = rng.normal(size=30)
        curve = 0.1 * rng.normal(size=(21, 30))  # every epoch says something, nothing of it true
        predicted, epochs = held_out(curve, reward, fold)
        assert epochs == np.argmin([np.sum((row - reward) ** 2) for row in curve])
        explained.append(1 - np.mean((predicted - reward) ** 2) / np.mean(reward**2))
    assert -0.02 < np.mean(explained) < 0.005  # −0.1² is what such predictions deserve


def test_a_part_is_predicted_at_the_epoch_that_is_best_on_the_others():
    fold, reward = np.array([0, 0, 1, 1, 2, 2]), np.zeros(6)
    curve = np.ones((3, 6))
    curve[1, fold == 0] = 0.0  # by luck: no epoch is better on two parts
    curve[2] = 0.9
    predicted, epochs = held_out(curve, reward, fold)
    np.testing.assert_array_equal(predicted, [0.9, 0.9, 1.0, 1.0, 1.0, 1.0])
    assert epochs == 1


def test_predictions_are_made_in_batches_of_one_size(tmp_path, monkeypatch):
    shapes, call = set(), ValueHead.__call__

    def seen(self, params, hidden, mask, key=None):
        shapes.add(hidden.shape)
        return call(self, params, hidden, mask, key)

    monkeypatch.setattr(ValueHead, "__call__", seen)
    prompts = _letters(19)
    _fit(tmp_path, _answers(prompts, np.linspace(0, MAX, 19)), epochs=1)
    read, _ = LM.tokenizer.encode_prompts(TASK.template, prompts, limit=LIMITS.prompt)
    assert shapes == {(8, max(map(len, read)), LM.transformer.config.width)}


def test_it_stops_between_the_prompts_when_asked(tmp_path):
    narrow, answers = tiny_lm(width=56, rows=1), _answers(_letters(9), range(9))
    with pytest.raises(Interrupted, match="value prompts: 1 of 2"):
        _fit(tmp_path, answers, stopping=lambda: True, lm=narrow, epochs=1)


def test_answers_to_one_prompt_are_in_one_fold(tmp_path):
    prompts = [prompt for prompt in _letters(7) for _ in range(3)]
    rewards = np.random.default_rng(0).uniform(0, MAX, 21)
    value = _fit(tmp_path, _answers(prompts, rewards), epochs=1, folds=5)
    predicted = np.reshape(value.audit.predicted, (7, 3))
    # Each fold has its own head: equal prompts have equal predictions only if they share one.
    np.testing.assert_allclose(predicted, np.repeat(predicted[:, :1], 3, axis=1), rtol=1e-6)
    assert len(np.unique(predicted[:, 0].round(5))) >= 5


def test_a_line_in_the_prompt_length_is_measured_against(tmp_path):
    lengths = [3 + n % 12 for n in range(24)]
    answers = _answers(["x" * n for n in lengths], [0.1 * n for n in lengths])
    answers = Answers(
        scored_table(dataclasses.replace(r, example_id=str(n)) for n, r in enumerate(answers.rows))
    )
    audit = _fit(tmp_path, answers, epochs=1).audit
    assert audit.mse_of_length < 1e-10 < audit.mse_of_mean


def test_the_longest_prompts_fit(tmp_path):
    prompts = ["x" * 500, "y" * LIMITS.prompt, "z"]
    assert len(_fit(tmp_path, _answers(prompts, [0.5, 1.0, 0.0])).audit.predicted) == 3


def test_answers_that_are_paid_beyond_every_row_are_within_reach_of_v(tmp_path):
    answers = _answers(_letters(12), [MAX + 5, -3.0] * 6)
    value = _fit(tmp_path, answers, epochs=0)
    assert (value.min_value, value.max_value) == (-3.0, MAX + 5)
    np.testing.assert_allclose(value.audit.predicted, (MAX + 2) / 2, atol=1e-4)
    assert _fit(tmp_path, _answers(_letters(12), [1.0] * 12), epochs=0).max_value == MAX


@pytest.mark.parametrize("folds", [0, 1, 5])
def test_folds_that_the_prompts_do_not_allow_are_one_clear_line(tmp_path, folds):
    message = rf"^config\.value\.folds={folds} must be from 2 to the 4 validation prompts$"
    with pytest.raises(UserError, match=message):
        _fit(tmp_path, _answers(_letters(4), [0.5] * 4), folds=folds)


def test_no_answer_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"no answer .* raise config\.task\.validation"):
        _fit(tmp_path, Answers(()))


def test_it_stops_between_folds_when_asked(tmp_path):
    with pytest.raises(Interrupted, match="value folds: 1 of 3"):
        _fit(tmp_path, _answers(_letters(6), range(6)), stopping=lambda: True, epochs=1)
