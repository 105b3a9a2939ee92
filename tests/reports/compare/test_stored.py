"""Runs compared by the stored rewards of the test rows, where nothing scores an answer."""

import dataclasses

import numpy as np
import pytest

from alol_jax.reports.compare.files import plain_table, to_csv, to_json, to_latex
from alol_jax.reports.compare.page import to_html
from alol_jax.reports.compare.table import compare_runs
from alol_jax.reports.compare.words import verdict
from alol_jax.reports.statistics import bootstrap
from alol_jax.reports.stored_rewards import by_prompt, stored_measures
from alol_jax.training.held_out import Column
from alol_jax.types import Agreement, Interval
from tests.reports.runs import DRAWS, PROMPTS, answers, evaluated, run_result, unscored

EVERY = np.arange(PROMPTS)
NAMES = ("likeness gap", "order of ratio")


def columns(seed, lift):
    values = np.random.default_rng(seed).normal(size=(2, PROMPTS)) + lift
    return {name: Column(one, EVERY, "prompts") for name, one in zip(NAMES, values, strict=True)}


def run(objective, seed, lift):
    reference, policy = columns(99, 0.0), columns(seed + len(objective), lift)
    ids = [f"t{n}" for n in EVERY]
    numbers = by_prompt(ids, reference, policy)
    bare = unscored(evaluated(answers(seed, lift), answers(70, 0.0), 0))
    made = dataclasses.replace(
        bare,
        stored=stored_measures(numbers, policy, draws=DRAWS, seed=0),
        by_prompt=numbers,
    )
    return run_result(objective, seed=seed, evaluation=made)


RUNS = (run("nll", 0, 0.0), run("a_lol", 0, 4.0), run("a_lol", 1, 5.0))


def of(run, name):
    return run.evaluation.by_prompt["policy"].matrix[:, NAMES.index(name)]


@pytest.fixture(scope="module")
def found():
    return compare_runs(RUNS, against=None)


def test_differences_are_paired_by_prompt_to_the_row_that_is_asked_for(found):
    gain = of(RUNS[1], "likeness gap") - of(RUNS[0], "likeness gap")
    wanted = bootstrap(gain, draws=DRAWS, confidence=0.95, seed=0)
    one = found.difference("a_lol · seed 0", "likeness gap")
    assert (one.mean, one.low, one.high) == pytest.approx(dataclasses.astuple(wanted))
    to_reference = compare_runs(RUNS, against="reference")
    theirs = RUNS[0].evaluation.by_prompt["reference"].matrix[:, 1]
    mean = to_reference.difference("nll · seed 0", "order of ratio").mean
    assert mean == pytest.approx(np.mean(of(RUNS[0], "order of ratio") - theirs))


def test_seeds_are_averaged_prompt_by_prompt(found):
    both = np.mean([of(run, "likeness gap") for run in RUNS[1:]], axis=0)
    value = found.value("a_lol", "likeness gap")
    wanted = bootstrap(both, draws=DRAWS, confidence=0.95, seed=0)
    assert (value.mean, value.low, value.high) == pytest.approx(dataclasses.astuple(wanted))
    assert value.seeds == 2


def test_the_verdict_the_table_the_page_and_the_files_have_them(found):
    judged = verdict(found)
    assert judged.badge == "Better by the stored rewards" and judged.tone == "better"
    assert judged.sentence.startswith("No scorer judged the generated answers. By the stored rew")
    assert "best is a_lol" in judged.sentence
    text = plain_table(found)
    assert "by the stored rewards" in text and max(map(len, text.splitlines())) <= 100
    assert "likeness gap" in to_csv(found) and "likeness gap" in to_json(found)
    assert "likeness gap & $-$ nll" in to_latex(found)
    assert "By the stored rewards" in to_html(found)


def test_the_data_have_no_measure(found):
    assert found.value("data", "likeness gap") is None
    assert found.value("reference", "likeness gap") is not None


def test_a_scorer_that_did_not_give_the_rewards_is_named_with_what_it_is_worth():
    order = Interval(0.75, 0.6, 0.9)
    agreed = Agreement("rm", 24, 12, True, order, 0.5, None, None, 0.1, 0.0, 0.1, 0.2)
    scored = run_result("a_lol")
    scored = dataclasses.replace(
        scored, evaluation=dataclasses.replace(scored.evaluation, agreement=agreed)
    )
    found = compare_runs((scored,), against=None)
    assert "rm orders 75% [60%, 90%] of 12 held-out pairs" in verdict(found).sentence
    assert "rm orders 75% [60%, 90%]" in plain_table(found).replace("\n", " ")
