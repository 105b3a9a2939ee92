"""evaluate: the systems on the same test prompts, and their paired difference."""

import dataclasses

import numpy as np
import pytest

from alol_jax.reports.results import EVERY, measures, result_table, to_csv
from alol_jax.types import Interval, RewardSpec
from tests.tiny_run import (
    TASK,
    context,
    evaluate,
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
ROWS = [
    dataclasses.replace(row, components=(0.5, float(n)), reward=float(n))
    for n, row in enumerate(scored_rows(4, "test"))
]
# The first prompt has three responses, with rewards 0, 10 and 20.
MORE = [
    dataclasses.replace(ROWS[0], response=text, components=(0.5, reward), reward=reward)
    for text, reward in (("a good day", 10.0), ("bad", 20.0))
]
SCORED = dataclasses.replace(
    scored_splits(),
    test=scored_table((*ROWS, *MORE)),
    component_names=("positivity", "luck"),
)
pytestmark = pytest.mark.usefixtures("checksum")


def _evaluate(tmp_path, *, policy=1, seed=0, luck=1.0, positivity=0.5, own=None):
    config = small_options()
    config.evaluate.rewards = own or {}
    return evaluate(
        setup(LM, CHECKED, {"luck": luck, "positivity": positivity}, config.decode, seed=seed),
        config.evaluate,
        SCORED,
        fitted(LM),
        fitted(LM, policy),
        context=context(tmp_path),
    )


@pytest.fixture
def evaluation(tmp_path):
    return _evaluate(tmp_path)


def test_each_policy_answers_each_test_prompt_once(evaluation):
    for rows in (evaluation.reference, evaluation.policy):
        assert [row.example_id for row in rows] == [row.example_id for row in ROWS]
    assert evaluation.data == SCORED.test
    assert [system.name for system in evaluation.systems] == ["data", "reference", "policy"]
    texts = [[row.response for row in rows] for rows in (evaluation.reference, evaluation.policy)]
    assert texts[0] != texts[1]


def test_the_several_responses_of_a_prompt_count_as_their_mean(evaluation):
    data = evaluation.systems[0]
    assert data.reward.mean == pytest.approx(np.mean([10.0, 1.0, 2.0, 3.0]))
    assert [c.mean for c in data.components] == pytest.approx([0.5, 4.0])


def test_the_differences_are_those_of_the_means_component_by_component(evaluation):
    _, reference, policy = evaluation.systems
    assert evaluation.component_names == ("positivity", "luck")
    assert len(evaluation.differences) == 3
    pairs = zip(
        (*policy.components, policy.reward), (*reference.components, reference.reward), strict=True
    )
    for gain, (one, other) in zip(evaluation.differences, pairs, strict=True):
        assert gain.mean == pytest.approx(one.mean - other.mean)
        assert gain.low <= gain.mean <= gain.high
    assert evaluation.differences[-1].low < evaluation.differences[-1].high


def test_the_difference_is_paired_by_prompt(tmp_path):
    same = _evaluate(tmp_path, policy=0)
    assert same.policy == same.reference
    assert same.differences == (Interval(0.0, 0.0, 0.0),) * 3
    assert same.systems[1].reward.low < same.systems[1].reward.high  # though the rewards vary


def test_the_rewards_are_those_of_the_answers(evaluation, checksum):
    for row in (*evaluation.reference, *evaluation.policy):
        assert row.components[1] == checksum([row.prompt + row.response])[0]
        assert row.reward == pytest.approx(0.5 * row.components[0] + row.components[1])


def test_the_answers_are_greedy_and_the_seed_moves_only_the_intervals(tmp_path, evaluation):
    again = _evaluate(tmp_path, seed=1)
    assert (again.reference, again.policy) == (evaluation.reference, evaluation.policy)
    assert again.systems[0].reward != evaluation.systems[0].reward
    assert again.systems[0].reward.mean == evaluation.systems[0].reward.mean


def test_texts_are_measured_over_all_rows_of_a_system(evaluation):
    words = [row.response.lower().split() for row in SCORED.test]
    count = sum(map(len, words))
    data = evaluation.systems[0]
    assert data.length.mean == pytest.approx(count / len(words))
    share = len({w for text in words for w in text}) / count
    assert data.distinct[0].mean == pytest.approx(share)
    assert data.length.low < data.length.mean < data.length.high
    assert data.distinct[0].low < share < data.distinct[0].high


def test_without_a_scorer_only_the_data_have_a_reward(tmp_path):
    evaluation = _evaluate(tmp_path, luck=0.0, positivity=0.0)
    data, reference, policy = evaluation.systems
    assert data.reward.mean == pytest.approx(4.0)
    assert reference.reward is None and policy.reward is None
    assert reference.components == policy.components == evaluation.differences == ()
    assert [row.response for row in evaluation.policy] != [r.response for r in evaluation.reference]


def test_the_figures_of_a_source_are_those_of_its_prompts(evaluation):
    assert [(one.name, one.prompts) for one in evaluation.sets] == [("web", 2), ("book", 2)]
    for one in evaluation.sets:
        for system, rows in zip(
            one.systems, (evaluation.data, evaluation.reference, evaluation.policy), strict=True
        ):
            mine = [row for row in rows if row.source == one.name]
            of_prompt = {row.example_id: [] for row in mine}
            for row in mine:
                of_prompt[row.example_id].append(row.reward)
            assert system.reward.mean == pytest.approx(np.mean([*map(np.mean, of_prompt.values())]))
        gain = one.systems[2].reward.mean - one.systems[1].reward.mean
        assert one.difference.mean == pytest.approx(gain)
    total = np.mean([one.difference.mean for one in evaluation.sets])
    assert total == pytest.approx(evaluation.differences[-1].mean)


def test_the_kl_to_the_reference_is_0_where_the_policy_is_the_reference(tmp_path, evaluation):
    assert _evaluate(tmp_path, policy=0).kl == Interval(0.0, 0.0, 0.0)
    assert evaluation.kl.low > 0


def test_the_datas_responses_are_scored_anew_only_by_rewards_of_their_own(tmp_path, checksum):
    assert _evaluate(tmp_path).data is SCORED.test
    anew = _evaluate(tmp_path, own={"luck": 1.0, "positivity": 0.5})
    for row, before in zip(anew.data, SCORED.test, strict=True):
        assert (row.example_id, row.response) == (before.example_id, before.response)
        assert row.components[1] == checksum([row.prompt + row.response])[0]


def test_every_system_is_measured_against_what_the_task_says_a_response_rests_on(tmp_path):
    config = small_options()
    config.evaluate.measures = ("density", "coverage")
    rests = dataclasses.replace(CHECKED, pair=lambda prompt, response: ("a GOOD day", response))
    found = evaluate(
        setup(LM, rests, {"luck": 1.0, "positivity": 0.5}, config.decode),
        config.evaluate,
        SCORED,
        fitted(LM),
        fitted(LM, 1),
        context=context(tmp_path),
    )
    assert found.measure_names == ("density", "coverage")
    # good, bad, a great day, an awful day, a good day, bad
    density, coverage = found.systems[0].measures
    assert coverage.mean == pytest.approx(np.mean([1, 0, 2 / 3, 1 / 3, 1, 0]))
    assert density.mean == pytest.approx(np.mean([1, 0, 2 / 3, 1 / 3, 3, 0]))
    assert density.low < density.mean < density.high
    assert all(len(system.measures) == 2 for system in found.systems)
    assert all(len(system.measures) == 2 for one in found.sets for system in one.systems)
    mine = measures(found)
    for system in found.systems:
        (row,) = (m for m in mine if (m.system, m.metric, m.set) == (system.name, "density", EVERY))
        assert (row.mean, row.low, row.high) == dataclasses.astuple(system.measures[0])
    assert {m.set for m in mine if m.metric == "coverage"} == {EVERY, "web", "book"}
    lines = result_table(found).splitlines()
    (line,) = (line for line in lines if line.startswith("coverage"))
    assert f"{coverage.mean:.3f} [" in line
    assert f"data,coverage,{coverage.mean}," in to_csv(mine)


def test_without_measures_there_are_none(evaluation):
    assert evaluation.measure_names == () and evaluation.systems[0].measures == ()
    assert "coverage" not in result_table(evaluation)
