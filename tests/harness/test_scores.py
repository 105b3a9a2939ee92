"""Reference and policy on tasks: which differences have an interval, and what is printed."""

import json
import math

import pytest

from alol_jax.harness.scores import Figure, Outcome, scores, table, to_json


def outcome(values, perplexity=3.0):
    """What lm-eval would say of a model with these values of eight documents."""
    mean = sum(values) / len(values)
    results = {
        "quiz": {"acc,none": mean, "acc_stderr,none": 0.1, "f1,strict": 0.5},
        "text": {"word_perplexity,none": perplexity},
        "all": {"acc,none": mean},
    }
    each = {("quiz", "acc,none"): dict(enumerate(values)), ("quiz", "f1,strict"): {0: 0.9}}
    higher = {"quiz": {"acc": True}, "text": {"word_perplexity": False}}
    return Outcome(results, each, {"quiz": len(values), "text": 2}, higher)


REFERENCE = outcome([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
POLICY = outcome([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], perplexity=2.0)
FOUND = scores(REFERENCE, POLICY, draws=2000, seed=0)


def test_every_metric_of_every_task_has_a_score_and_standard_errors_are_no_metrics():
    assert [(one.task, one.metric) for one in FOUND] == [
        ("quiz", "acc"),
        ("quiz", "f1 (strict)"),
        ("text", "word_perplexity"),
        ("all", "acc"),
    ]
    accuracy = FOUND[0]
    assert accuracy.reference == Figure(0.25, 0.1) and accuracy.policy == Figure(0.75, 0.1)
    assert (accuracy.documents, accuracy.higher_is_better) == (8, True)
    assert accuracy.difference == 0.5


def test_the_interval_is_that_of_the_differences_by_document():
    low, high = FOUND[0].interval
    assert 0 < low < 0.5 < high
    same = scores(REFERENCE, REFERENCE, draws=200, seed=0)[0]
    assert same.difference == 0 and same.interval == (0.0, 0.0)


def test_a_figure_that_is_no_mean_over_documents_has_no_interval():
    assert [one.interval for one in FOUND[1:]] == [None, None, None]
    assert FOUND[2].difference == -1.0 and FOUND[3].documents is None


def test_other_documents_are_not_paired():
    fewer = outcome([0.0, 1.0])
    assert scores(REFERENCE, fewer, draws=200, seed=0)[0].interval is None


def test_the_table_says_the_documents_the_errors_and_which_way_is_better():
    lines = table(FOUND).splitlines()
    assert max(map(len, lines)) <= 100 and table(FOUND).isascii()
    assert "quiz (8 documents)" in lines and "all" in lines
    (accuracy, _) = (line for line in lines if line.startswith("  acc"))
    assert accuracy.split()[:5] == ["acc", "(up)", "0.250", "+-", "0.100"]
    assert "+0.500 [" in accuracy
    assert any(line.split()[:2] == ["word_perplexity", "(down)"] for line in lines)


def test_a_large_figure_keeps_the_columns():
    large = outcome([0.0, 1.0], perplexity=2.5e9)
    lines = table(scores(large, outcome([0.0, 1.0]), draws=200, seed=0)).splitlines()
    (line,) = (line for line in lines if "word_perplexity" in line)
    assert line.split()[2:] == ["2.5e+09", "3.000", "-2.5e+09"]


def test_the_json_has_the_same_numbers_and_the_settings():
    made = json.loads(json.dumps(to_json(FOUND, {"limit": None})))
    assert made["settings"] == {"limit": None}
    first = made["scores"][0]
    assert first["reference"] == {"value": 0.25, "stderr": 0.1}
    assert first["interval"] == pytest.approx(FOUND[0].interval)


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_null_in_the_json_and_said_in_the_table():
    """An infinite perplexity of both; a mean that is not a number."""
    infinite = outcome([0.0, math.nan], perplexity=math.inf)
    found = scores(infinite, infinite, draws=200, seed=0)
    made = json.loads(json.dumps(to_json(found, {}), allow_nan=False))["scores"]
    nothing = {"value": None, "stderr": None}
    assert made[2]["reference"] == made[2]["policy"] == nothing
    assert made[2]["difference"] is None and made[0]["interval"] is None
    assert made[0]["policy"] == {"value": None, "stderr": 0.1}
    lines = table(found).splitlines()
    (line,) = (line for line in lines if "word_perplexity" in line)
    assert line.split()[2:] == ["inf", "inf", "nan"]


def test_an_infinite_value_of_one_document_leaves_no_interval():
    infinite = outcome([math.inf, 1.0])
    assert scores(infinite, outcome([0.0, 1.0]), draws=200, seed=0)[0].interval is None
