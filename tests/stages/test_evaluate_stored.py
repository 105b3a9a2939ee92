"""evaluate by stored rewards: measures of reference and policy on the same held-out rows."""

import dataclasses

import numpy as np
import pytest

from alol_jax.reports.results import DIFFERENCE, measures, result_table, verdict
from alol_jax.reports.sections_rewards import by_stored_rewards
from alol_jax.stages.evaluate_reference import evaluate_reference
from alol_jax.training.annotate import annotate
from alol_jax.training.items import tokenise
from alol_jax.types import Agreement, Interval
from tests.tiny_run import (
    TASK,
    context,
    evaluate,
    fitted,
    scored_rows,
    scored_splits,
    setup,
    small_options,
    tiny_lm,
)

LM = tiny_lm()
IDS = [f"t{n // 2}" for n in range(12)]
TEST = scored_rows(12, "test").replace(example_id=IDS, prompt=[f"{name}?" for name in IDS])
SCORED = dataclasses.replace(scored_splits(), test=TEST, component_names=())
AGREED = Agreement(
    *("the distilled scorer", 24, 12, True, Interval(0.75, 0.6, 0.9), 0.5, 0.4, 0.4, 0.1, 0.0),
    *(0.1, 0.2),
)


def evaluated(tmp_path, *, policy=1, positivity=0.0, agreement=None, test=TEST):
    config = small_options()
    made = setup(LM, TASK, {"positivity": positivity}, config.decode)
    return evaluate(
        made._replace(agreement=agreement),
        config.evaluate,
        dataclasses.replace(SCORED, test=test),
        fitted(LM),
        fitted(LM, policy),
        context=context(tmp_path),
    )


@pytest.mark.parametrize("names", [(), ("positivity",)])
def test_log_probabilities_of_the_rows_are_computed_where_rewards_are_stored(tmp_path, names):
    scored = dataclasses.replace(SCORED, component_names=names)
    made = setup(LM, TASK, {"positivity": 1.0}, small_options().decode)
    found = evaluate_reference(made, scored, fitted(LM), context=context(tmp_path))
    assert len(found.answers) == 6 and len(found.logps) == (0 if names else 12)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return evaluated(tmp_path_factory.mktemp("evaluation"))


def test_every_measure_is_there_with_what_it_rests_on(evaluation):
    assert [(one.name, one.rests_on) for one in evaluation.stored] == [
        ("likeness gap", "6 prompts"),
        ("likeness", "6 prompts"),
        ("order", "6 pairs"),
        ("order per token", "6 pairs"),
        ("order of ratio", "6 pairs"),
        ("order of ratio per token", "6 pairs"),
        ("logp gap", "12 rows"),
    ]


def test_the_orders_are_those_of_the_models_log_probabilities(evaluation):
    rows, _ = tokenise(TEST, TASK, LM.tokenizer, LM.limits)
    watch = context(None).watch("rows")
    logp, ref_logp = (
        annotate(LM, fitted(LM, n).trained, rows, watch=watch)[0].sums() for n in (1, 0)
    )
    found = {one.name: one for one in evaluation.stored}
    right = {"order": logp, "order of ratio": logp - ref_logp}
    for name, score in right.items():
        pairs = score.reshape(6, 2) @ [1, -1] * (TEST["reward"].reshape(6, 2) @ [1, -1])
        assert found[name].policy.mean == pytest.approx(np.mean(pairs > 0))
    assert found["order of ratio"].reference == Interval(0.5, 0.5, 0.5)


def test_the_differences_are_paired(tmp_path, evaluation):
    same = evaluated(tmp_path, policy=0)
    assert {one.difference for one in same.stored} == {Interval(0.0, 0.0, 0.0)}
    for one in evaluation.stored:
        assert one.difference.mean == pytest.approx(one.policy.mean - one.reference.mean)
    ours, theirs = (evaluation.by_prompt[name].matrix for name in ("policy", "reference"))
    assert ours.shape == theirs.shape == (6, 7)
    np.testing.assert_allclose(ours.mean(0), [one.policy.mean for one in evaluation.stored])


def test_the_table_the_verdict_and_the_files_have_them(evaluation):
    found = {(m.system, m.metric): m.mean for m in measures(evaluation)}
    by_name = {one.name: one for one in evaluation.stored}
    assert found[DIFFERENCE, "likeness gap"] == by_name["likeness gap"].difference.mean
    text = result_table(evaluation)
    assert "by the stored rewards" in text and text.isascii()
    assert max(map(len, text.splitlines())) <= 100
    said = verdict(evaluation).sentence
    assert said.startswith("No scorer judged the generated answers. By the stored rewards of 6 te")
    assert "best-paid" in said and "pays for copying" in said


SOURCES = ["web"] * 4 + ["book"] * 8
MIXED = TEST.replace(source=SOURCES)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The evaluation of test rows of two sources."""
    return evaluated(tmp_path_factory.mktemp("mixed"), test=MIXED)


def test_what_is_said_of_a_source_is_what_its_rows_alone_say(mixed, tmp_path):
    assert [(one.name, one.prompts) for one in mixed.sets] == [("web", 2), ("book", 4)]
    for one in mixed.sets:
        alone = evaluated(tmp_path, test=MIXED.where(MIXED["source"].equal(one.name)))
        assert [s.name for s in one.stored] == [s.name for s in alone.stored]
        for ours, theirs in zip(one.stored, alone.stored, strict=True):
            assert ours.rests_on == theirs.rests_on
            for system in ("reference", "policy", "difference"):
                ends = dataclasses.astuple(getattr(ours, system))
                right = dataclasses.astuple(getattr(theirs, system))
                assert ends == pytest.approx(right, abs=1e-5), (one.name, ours.name, system)
        assert [found.stored for found in alone.sets] == [()]  # one source has no table of its own
    rests = [[stored.rests_on for stored in one.stored] for one in mixed.sets]
    assert [one[0] for one in rests] == ["2 prompts", "4 prompts"]
    assert [one[-1] for one in rests] == ["4 rows", "8 rows"]
    assert mixed.stored == evaluated(tmp_path).stored


def test_a_source_whose_rows_cannot_give_a_measure_leaves_it_out(tmp_path):
    rewards = TEST["reward"].copy()
    rewards[:4] = 0.5
    flat = MIXED.replace(reward=rewards)
    web, book = evaluated(tmp_path, test=flat).sets
    assert [one.name for one in web.stored] == ["likeness"]
    assert len(book.stored) == 7
    lines = result_table(evaluated(tmp_path, test=flat)).splitlines()
    assert [line.split()[2:] for line in lines if line.startswith("  web (2)")] == [
        ["0.500", "[0.500,", "0.500]", "-", "-"],
        ["-", "-"],
        ["-", "-"],
    ]


def test_the_table_the_files_and_the_page_have_the_measures_of_each_source(mixed):
    text = result_table(mixed)
    assert text.isascii() and max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("likeness gap by test")))
    web, book = mixed.sets
    assert lines[start + 1].split()[:4] == ["web", "(2)", "2", "prompts"]
    assert lines[start + 2].split()[:4] == ["book", "(4)", "4", "prompts"]
    assert f"{book.stored[0].difference.mean:+.1f} [" in lines[start + 2]
    found = {(m.set, m.system, m.metric): m for m in measures(mixed)}
    gap = found["book", DIFFERENCE, "likeness gap"]
    ends = book.stored[0].difference
    assert (gap.mean, gap.low, gap.high) == (ends.mean, ends.low, ends.high)
    whole, by_set = by_stored_rewards(mixed).tables
    assert by_set.caption == "By test set" and len(whole.rows) == 7 and len(by_set.rows) == 14
    cells = [cell.text for cell in by_set.rows[7].cells]
    assert cells[:3] == ["book", "likeness gap", "4 prompts"] and len(cells) == 6


def test_a_scorer_that_did_not_give_the_rewards_scores_all_three_systems(tmp_path):
    both = evaluated(tmp_path, positivity=1.0, agreement=AGREED)
    assert [len(system.components) for system in both.systems] == [1, 1, 1]
    assert both.stored and both.differences
    said = "rest on a scorer: the distilled scorer orders 75% [60%, 90%] of 12 held-out pairs"
    assert said in verdict(both).sentence
    assert "rest on a scorer: the distilled scorer orders 75%" in result_table(both)


def test_where_the_scorer_gave_the_rewards_there_is_nothing_stored(tmp_path):
    config = small_options()
    found = evaluate(
        setup(LM, TASK, {"positivity": 1.0}, config.decode),
        config.evaluate,
        dataclasses.replace(SCORED, component_names=("positivity",)),
        fitted(LM),
        fitted(LM, 1),
        context=context(tmp_path),
    )
    assert found.stored == () and len(found.by_prompt) == 0
