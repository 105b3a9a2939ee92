"""generate: the reference's own answers to the validation prompts, scored."""

import dataclasses

import pytest

from alol_jax.stages.generate import generate
from alol_jax.types import RewardSpec
from tests.tiny_run import (
    TASK,
    context,
    fitted,
    scored_rows,
    scored_splits,
    scored_table,
    setup,
    small_options,
    tiny_lm,
)

LM = tiny_lm()
CHECKED = dataclasses.replace(
    TASK, rewards=(*TASK.rewards, RewardSpec("luck", "checksum", "{prompt}{response}", 1.0))
)
VALIDATION = scored_rows(3, "validation")
SCORED = dataclasses.replace(
    scored_splits(),
    validation=scored_table(
        (VALIDATION[0], dataclasses.replace(VALIDATION[0], response="no"), *VALIDATION[1:])
    ),
)
pytestmark = pytest.mark.usefixtures("checksum")


def _generate(tmp_path, *, said=None, seed=0, policy=0, luck=1.0, positivity=0.5, **changes):
    config = small_options()
    config.generate.update(changes)
    given = context(tmp_path, said=said)
    return generate(
        setup(LM, CHECKED, {"luck": luck, "positivity": positivity}, config.decode, seed=seed),
        config.generate,
        SCORED,
        fitted(LM, policy),
        context=given,
    ).rows


def _texts(rows):
    return [row.response for row in rows]


def test_every_validation_prompt_is_answered_once_whatever_the_data_has(tmp_path):
    said = []
    rows = _generate(tmp_path, said=said)
    assert [row.example_id for row in rows] == ["validation0", "validation1", "validation2"]
    assert [row.prompt for row in rows] == [row.prompt for row in VALIDATION]
    assert said[-1].startswith("3 answers, mean reward ")


def test_the_reward_is_that_of_the_answer_with_the_weights_of_the_config(tmp_path, checksum):
    for row in _generate(tmp_path):
        positivity, luck = row.components
        assert luck == checksum([row.prompt + row.response])[0]
        assert row.reward == pytest.approx(0.5 * positivity + luck)


def test_greedy_answers_depend_on_the_reference_and_not_on_the_seed(tmp_path):
    greedy = _texts(_generate(tmp_path))
    assert _texts(_generate(tmp_path, seed=1, samples=2)) == [t for t in greedy for _ in range(2)]
    assert _texts(_generate(tmp_path, policy=1)) != greedy


def test_sampled_answers_differ_from_draw_to_draw_and_come_again_with_the_seed(tmp_path):
    rows = _generate(tmp_path, samples=3, temperature=1.0)
    assert [row.example_id[-1] for row in rows] == list("000111222")
    assert len(set(_texts(rows[:3]))) == 3
    assert _generate(tmp_path, samples=3, temperature=1.0) == rows
    assert _generate(tmp_path, samples=3, temperature=1.0, seed=1) != rows


def test_without_a_scorer_the_data_stand_in_and_no_model_runs(tmp_path):
    said = []
    rows = _generate(tmp_path, said=said, luck=0.0, positivity=0.0)
    assert rows == SCORED.validation
    (line,) = said
    assert line.startswith("no scorer: the data's validation responses stand in for the reference")
    assert "config.score.distil fits" in line
