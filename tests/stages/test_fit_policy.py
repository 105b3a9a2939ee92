"""fit_policy: which rows are drawn, what the objective is told, and what selects the step."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from alol_jax.decoding.answers import one_per_prompt
from alol_jax.errors import UserError
from alol_jax.objectives.losses import nll
from alol_jax.objectives.registry import OBJECTIVES, Objective
from alol_jax.stages import fit_policy as stage
from alol_jax.training.annotate import annotate
from alol_jax.training.items import tokenise
from alol_jax.training.validation import make_validator
from alol_jax.types import Limits, Policy, RewardSpec, TrainingTable, Watch, Work
from tests.tiny_run import (
    TASK,
    annotated_rows,
    context,
    evaluate,
    fitted,
    scored_splits,
    scored_table,
    setup,
    small_options,
    tiny_lm,
)

LIMITS = Limits(16, 16)
LM = tiny_lm(limits=LIMITS)
CHECKED = dataclasses.replace(TASK, rewards=(RewardSpec("luck", "checksum", "{response}", 1.0),))
SCORED = scored_splits(train=12)
pytestmark = pytest.mark.usefixtures("checksum")


def _table() -> TrainingTable:
    """Rows 0 and 1 are not kept; the kept ones have advantages 0, 0, 1, 1, 1, 1, 1, 1, 1, 16."""
    rows, _ = tokenise(SCORED.train, TASK, LM.tokenizer, LIMITS)
    return TrainingTable(
        annotated_rows(
            dataclasses.replace(
                row,
                example_id=str(n // 2),  # pairs, for objectives that compare
                reward=float(n),
                ref_logp=(-1.0,) * len(row.response),
                advantage={2: 0.0, 3: 0.0, 11: 16.0}.get(n, 1.0),
                kept=n > 1,
            )
            for n, row in enumerate(rows)
        )
    )


def _fit(tmp_path, objective, *, said=None, scored=SCORED, luck=1.0, responses=2, lm=LM, **changes):
    config = small_options()
    config.policy.update(changes)
    config.objective.update({"clip": 0.5, "beta": 0.25, "responses": responses})
    config.objective.name = objective if isinstance(objective, str) else "its own"
    return stage.fit_policy(
        setup(lm, CHECKED, {"luck": luck}, config.decode),
        objective if isinstance(objective, Objective) else OBJECTIVES[objective],
        config.objective,
        config.policy,
        scored,
        _table(),
        fitted(LM),
        context=context(tmp_path, said=said),
    )


@pytest.fixture
def planned(monkeypatch):
    """What would be trained on, without training: the arguments of `fit_best`."""
    found = {}

    def fit_best(state, frozen, batches, update, plan, *rest, label):
        found.update({"batches": batches, "plan": plan})
        return Policy({}, 0, (), ())

    monkeypatch.setattr(stage, "fit_best", fit_best)
    return found


def _batches(found) -> list:
    """All batches of the plan."""
    return list(found["batches"](0, found["plan"].steps))


def _drawn(found) -> np.ndarray:
    """The rewards, which number the rows, of all batches of the plan."""
    return np.concatenate([np.asarray(b.targets.reward).reshape(-1) for b in _batches(found)])


def _work(found) -> np.ndarray:
    """The work of all batches of the plan."""
    return np.sum([batch.work for batch in _batches(found)], axis=0)


# which rows, how often


@pytest.mark.parametrize(
    ("objective", "sampling", "said"),
    [
        ("a_lol", "auto", "8 items, all_priority sampling, 2 steps"),
        ("wbc", "auto", "11 items, all_priority sampling, 3 steps"),
        ("nll", "auto", "12 items, uniform sampling, 3 steps"),
        ("nll", "good_uniform", "6 items, good_uniform sampling, 2 steps"),
        ("dpo", "auto", "6 items, uniform sampling, 2 steps"),
        ("a_lol", "uniform", "10 items, uniform sampling, 3 steps"),
        ("a_lol", "good_uniform", "5 items, good_uniform sampling, 2 steps"),
        ("a_lol", "all_random", "8 items, all_random sampling, 2 steps"),
        ("a_lol", "good_random", "4 items, good_random sampling, 1 steps"),
        ("wbc", "good_priority", "5 items, good_priority sampling, 2 steps"),
    ],
)
def test_the_sampling_follows_the_objective_unless_it_is_chosen(
    tmp_path, planned, objective, sampling, said
):
    lines = []
    _fit(tmp_path, objective, said=lines, sampling=sampling)
    assert said in lines


def test_uniform_sampling_takes_every_kept_row_equally_often(tmp_path, planned):
    _fit(tmp_path, "a_lol", sampling="uniform", epochs=8.0, batch_size=2)
    drawn = _drawn(planned)
    rows, counts = np.unique(drawn, return_counts=True)
    assert rows.tolist() == list(range(2, 12))
    assert counts.min() >= 7 and counts.max() <= 9 and counts.sum() == 80


def test_random_sampling_leaves_out_rows_without_advantage(tmp_path, planned):
    _fit(tmp_path, "a_lol", sampling="all_random", epochs=4.0)
    assert set(_drawn(planned)) == set(range(4, 12))


def test_good_sampling_draws_the_first_response_of_a_prompt_alone(tmp_path, planned):
    _fit(tmp_path, "a_lol", sampling="good_priority", epochs=100.0)
    drawn = _drawn(planned)
    assert set(drawn) == {4, 6, 8, 10}  # row 11, with most advantage, is a second one
    share = np.bincount(drawn.astype(int))[[4, 6, 8, 10]] / len(drawn)
    assert share == pytest.approx(0.25, abs=5 * np.sqrt(0.25 / len(drawn)))


def test_a_bad_response_that_is_drawn_keeps_its_own_reward_and_advantage(tmp_path, planned):
    """The published all_priority gave it those of the good one."""
    _fit(tmp_path, "a_lol", sampling="all_priority", epochs=20.0)
    for _, targets, _ in _batches(planned):
        bad = np.asarray(targets.reward) == 11
        assert (np.asarray(targets.advantage)[bad] == 16).all()
        assert (np.asarray(targets.advantage)[~bad] == 1).all()


def test_priority_sampling_draws_by_the_advantage(tmp_path, planned):
    _fit(tmp_path, "a_lol", epochs=100.0)
    drawn = _drawn(planned)
    share = np.bincount(drawn.astype(int), minlength=12) / len(drawn)
    assert not share[:4].any()
    assert share[11] == pytest.approx(16 / 23, abs=5 * np.sqrt(0.25 / len(drawn)))


def test_priority_sampling_draws_by_the_reward_where_the_objective_reads_it(tmp_path, planned):
    _fit(tmp_path, "wbc", epochs=60.0)
    drawn = _drawn(planned)
    assert set(drawn) == set(range(1, 12))  # neither the advantage nor what is kept matters
    assert (drawn >= 7).mean() == pytest.approx(45 / 66, abs=0.1)


def test_pairs_hold_the_better_response_first(tmp_path, planned):
    said = []
    _fit(tmp_path, "dpo", batch_size=4, said=said)
    assert "dpo: 6 prompts with 2 responses ranked by reward; left out: 0 with fewer" in said[0]
    for _, targets, _ in _batches(planned):
        assert targets.mask.shape[:2] == targets.ref_logp.shape[:2] == (4, 2)
        assert (np.asarray(targets.reward[:, 0]) == np.asarray(targets.reward[:, 1]) + 1).all()


def test_pro_ranks_as_many_responses_as_it_is_told(tmp_path, planned, monkeypatch):
    rows = annotated_rows(
        dataclasses.replace(row, example_id=str(n // 4)) for n, row in enumerate(_table().rows)
    )
    monkeypatch.setattr(f"{__name__}._table", lambda: TrainingTable(rows))
    said = []
    _fit(tmp_path, "pro", batch_size=2, responses=3, said=said)
    assert "pro: 3 prompts with 3 responses ranked by reward" in said[0]
    for _, targets, _ in _batches(planned):
        assert targets.mask.shape[:2] == (2, 3)
        best, middle, worst = np.asarray(targets.reward).T
        assert (best == worst + 3).all() and (worst < middle).all() and (middle < best).all()
    three = _work(planned)
    _fit(tmp_path, "pro", batch_size=2)
    assert (three > _work(planned)).all()


def test_a_width_that_holds_no_ranked_example_is_one_clear_line(tmp_path, monkeypatch):
    rows = annotated_rows(
        dataclasses.replace(row, example_id=str(n // 4)) for n, row in enumerate(_table().rows)
    )
    monkeypatch.setattr(f"{__name__}._table", lambda: TrainingTable(rows))
    narrow = tiny_lm(limits=LIMITS, width=32)
    with pytest.raises(UserError) as caught:
        _fit(tmp_path, "pro", responses=4, lm=narrow)
    said = r"config\.model\.width=32: the longest example has \d+ tokens: raise it \(0 = chosen .*"
    assert re.fullmatch(said, str(caught.value))


def test_pro_trains_on_three_responses_of_a_prompt(tmp_path, monkeypatch):
    rows = annotated_rows(
        dataclasses.replace(row, example_id=str(n // 3)) for n, row in enumerate(_table().rows)
    )
    monkeypatch.setattr(f"{__name__}._table", lambda: TrainingTable(rows))
    policy = _fit(tmp_path, "pro", batch_size=2, responses=3)
    curves = {curve.name: curve.values for curve in policy.curves}
    assert len(curves["loss"]) == 2 and np.isfinite(curves["loss"]).all()


def test_ranked_by_the_data_its_first_response_is_the_chosen_one(tmp_path, planned):
    _fit(tmp_path, "dpo", batch_size=2, ranking="data")
    for _, targets, _ in _batches(planned):
        assert (np.asarray(targets.reward[:, 0]) == np.asarray(targets.reward[:, 1]) - 1).all()


def test_the_work_is_that_on_all_rows_that_are_drawn(tmp_path, planned):
    rows = _table().rows
    _fit(tmp_path, "nll", epochs=2.0, batch_size=6)
    single = Work(*_work(planned))
    assert single.tokens == 2 * sum(len(row.prompt) + len(row.response) for row in rows)
    _fit(tmp_path, "dpo", epochs=2.0, batch_size=6)
    pairs = Work(*_work(planned))
    prompts = sum(len(row.prompt) for row in rows[1::2])  # of the better one, read once a pair
    assert pairs.tokens == 2 * (prompts + sum(len(row.response) for row in rows))
    assert 0 < pairs.flops < single.flops


def test_the_cost_is_the_work_of_the_steps_and_is_said(tmp_path):
    said = []
    policy = _fit(tmp_path, "nll", batch_size=5, said=said)
    cost, logged = policy.cost, {curve.name: sum(curve.values) for curve in policy.curves}
    assert (cost.tokens, cost.computed) == (logged["tokens"], logged["computed_tokens"])
    assert cost.flops == logged["flops"] and 0 < cost.real == cost.tokens / cost.computed < 1
    rate = cost.tokens / cost.seconds
    assert said[-1] == f"fit_policy: real tokens {cost.real:.0%}, {rate:.0f} real tokens/s"
    assert [line for line in said if line.startswith("grids of ")]


def test_a_baseline_trains_on_the_kept_rows_if_it_is_told_to(tmp_path, planned):
    _fit(tmp_path, "nll", epochs=3.0, filter="kept")
    assert set(_drawn(planned)) == set(range(2, 12))


def test_without_the_filter_advantages_below_0_stay(tmp_path, planned, monkeypatch):
    rows = (dataclasses.replace(row, advantage=row.reward - 6.0) for row in _table().rows)
    table = TrainingTable(annotated_rows(rows))
    monkeypatch.setattr(f"{__name__}._table", lambda: table)
    _fit(tmp_path, "a_lol", epochs=2.0, filter="none", sampling="uniform")
    assert set(_drawn(planned)) == set(range(12))
    for targets in (batch.targets for batch in _batches(planned)):
        np.testing.assert_array_equal(targets.advantage, np.asarray(targets.reward) - 6.0)


def test_no_positive_advantage_is_one_line_with_the_count_and_the_best(tmp_path, monkeypatch):
    rows = (dataclasses.replace(row, advantage=-0.25, kept=False) for row in _table().rows)
    poor = TrainingTable(annotated_rows(rows))
    monkeypatch.setattr(f"{__name__}._table", lambda: poor)
    with pytest.raises(UserError) as caught:
        _fit(tmp_path, "a_lol")
    assert str(caught.value).startswith("none of 12 training rows has a positive advantage (the b")
    assert "\n" not in str(caught.value)


def test_kept_rows_that_a_good_sampling_never_draws_are_named(tmp_path, monkeypatch):
    rows = (dataclasses.replace(row, kept=n % 2 == 1) for n, row in enumerate(_table().rows))
    table = TrainingTable(annotated_rows(rows))
    monkeypatch.setattr(f"{__name__}._table", lambda: table)
    with pytest.raises(UserError, match="sampling=good_priority: none of the 6 first .* 6 others"):
        _fit(tmp_path, "a_lol", sampling="good_priority")


def test_a_warm_up_that_never_ends_is_said(tmp_path, planned):
    said, rates = [], small_options().policy.optimizer
    rates.update({"warmup": 30, "learning_rate": 2e-4})
    _fit(tmp_path, "nll", said=said, optimizer=rates)
    (line,) = [line for line in said if "warm-up" in line]
    assert "30 steps is longer than training, 3 steps" in line and "1.3e-05, not at 0.0002" in line


def test_rows_with_one_response_where_two_are_needed_are_counted(tmp_path, monkeypatch, planned):
    rows = _table().rows
    single = annotated_rows(
        dataclasses.replace(row, example_id=f"alone{n}" if n < 8 else row.example_id)
        for n, row in enumerate(rows)
    )
    monkeypatch.setattr(f"{__name__}._table", lambda: TrainingTable(single))
    said = []
    _fit(tmp_path, "dpo", said=said)
    assert said[0].startswith("dpo: ") and "left out: 8 with fewer responses" in said[0]
    monkeypatch.setattr(f"{__name__}._table", lambda: TrainingTable(single[:8]))
    with pytest.raises(UserError, match="objective dpo needs 2 responses .* of 8 prompts 8 have"):
        _fit(tmp_path, "dpo")


@pytest.mark.parametrize(
    ("objective", "sampling", "message"),
    [
        ("nll", "all_priority", "sampling='all_priority' needs an objective that"),
        ("dpo", "all_random", "sampling='all_random' needs an objective that"),
        ("a_lol", "good_prioritty", "'good_prioritty': did you mean 'good_priority'"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_one_clear_line(tmp_path, objective, sampling, message):
    with pytest.raises(UserError, match=message):
        _fit(tmp_path, objective, sampling=sampling)


# training


def test_the_objective_gets_its_hyper_parameters_and_the_stored_annotations(tmp_path):
    told = []

    def spy(logp, targets, *, clip, beta):
        told.append((clip, beta, logp.shape, targets.ref_logp.shape, targets.advantage.shape))
        return nll(logp, targets)

    policy = _fit(tmp_path, Objective(spy, ("advantage",), 1, "advantage"), epochs=0.1)
    longest = _table().rows["response"].lengths.max()
    assert set(told) == {(0.5, 0.25, (4, longest), (4, longest), (4,))}
    assert [v.metric for v in policy.validations] == ["mean validation reward"] * 2
    assert [v.step for v in policy.validations] == [0, 1]
    assert {curve.name for curve in policy.curves} >= {"loss", "nll", "grad_norm"}


def test_step_zero_is_the_reference_and_its_score_the_mean_reward_of_its_answers(tmp_path):
    config = small_options()
    policy = _fit(tmp_path, "a_lol", epochs=0.1)
    # `evaluate` asks about its test split: the validation prompts here.
    asked = dataclasses.replace(SCORED, test=SCORED.validation)
    given = setup(LM, CHECKED, {"luck": 1.0}, config.decode)
    reference = evaluate(
        given, config.evaluate, asked, fitted(LM), policy, context=context(tmp_path)
    )
    assert policy.validations[0].score == pytest.approx(reference.systems[1].reward.mean)
    best = max(validation.score for validation in policy.validations)
    assert reference.systems[2].reward.mean == pytest.approx(best)


def test_without_a_scorer_the_weighted_likelihood_selects(tmp_path):
    policy = _fit(tmp_path, "nll", luck=0.0, epochs=0.5)
    assert {v.metric for v in policy.validations} == {
        "reward-weighted logp of validation responses"
    }
    rows, _ = tokenise(SCORED.validation, TASK, LM.tokenizer, LIMITS)
    logps, _ = annotate(LM, fitted(LM).trained, rows, watch=Watch("rows"))
    reward = np.array([row.reward for row in rows])
    weights = [max(row.reward - reward.mean(), 0) for row in rows]
    expected = np.average([logp.sum() for logp in logps], weights=weights)
    assert policy.validations[0].score == pytest.approx(expected, rel=1e-5)
    assert policy.validations[-1].score != policy.validations[0].score


def test_without_a_scorer_equal_rewards_are_one_clear_line(tmp_path):
    equal = scored_table(dataclasses.replace(row, reward=0.5) for row in SCORED.validation)
    with pytest.raises(UserError, match="all 4 validation rewards are equal"):
        _fit(tmp_path, "nll", luck=0.0, scored=dataclasses.replace(SCORED, validation=equal))


def test_a_component_that_is_chosen_decides_alone_which_step_is_kept(tmp_path):
    """luck is paid as positivity is; what the answers earn in it alone is what is compared."""
    both = dataclasses.replace(
        CHECKED,
        rewards=(*CHECKED.rewards, RewardSpec("chance", "checksum", "{prompt}{response}", 1)),
    )
    config = small_options()
    given = setup(LM, both, {"luck": 1.0, "chance": 3.0}, config.decode)
    for name, place in (("luck", 0), ("chance", 1)):
        validator = make_validator(given, SCORED, name, context(tmp_path))
        assert validator.metric == f"mean validation {name}"
        for seed in (0, 1):
            trained = fitted(LM, seed).trained
            rows = given.deterministic_sampler().answer(
                trained,
                one_per_prompt(SCORED.validation),
                given.reward(SCORED),
                key=jax.random.key(0),
                watch=Watch("answers"),
            )
            means = rows["components"].matrix.mean(axis=0)
            assert means[0] != means[1]
            assert validator.look(trained).score == pytest.approx(means[place])


def test_the_step_is_chosen_by_the_component_that_the_options_name(tmp_path):
    policy = _fit(tmp_path, "nll", epochs=0.1, choose_by="luck")
    assert {v.metric for v in policy.validations} == {"mean validation luck"}
