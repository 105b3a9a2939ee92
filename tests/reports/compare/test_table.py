"""Figures of several runs: pairing, seeds, sets, and what the rows are called."""

import dataclasses

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.reports.compare.rows import differing_settings, group_runs
from alol_jax.reports.compare.table import CONFIDENCE, compare_runs
from alol_jax.reports.compare.words import description, format_estimate, format_value, verdict
from alol_jax.reports.results import EVERY, by_prompt
from alol_jax.reports.statistics import bootstrap, over_seeds
from alol_jax.stages import evaluate
from alol_jax.types import Interval
from tests.reports.runs import (
    DRAWS,
    PARTS,
    PROMPTS,
    SOURCES,
    answers,
    evaluated,
    run_result,
    unscored,
)
from tests.tiny_run import scored_table

NLL = [run_result("nll", seed=seed, lift=0.0) for seed in (0, 1)]
A_LOL = [run_result("a_lol", seed=seed, lift=0.2) for seed in (0, 1, 2)]
DPO = run_result("dpo", seed=4, lift=0.1)
RUNS = (*NLL, *A_LOL, DPO)


@pytest.fixture(scope="module")
def found():
    return compare_runs(RUNS, against=None)


def totals(rows) -> np.ndarray:
    """The total reward of each prompt, in the order of the prompts' names."""
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row.example_id, []).append(row.reward)
    return np.array([np.mean(by_name[f"t{i}"]) for i in range(PROMPTS)])


def ends(estimate) -> Interval:
    return Interval(estimate.mean, estimate.low, estimate.high)


def assert_is(estimate, values: np.ndarray, seed: int = 0) -> None:
    """It is the mean of these values with the bootstrap interval of a run of this seed."""
    wanted = bootstrap(values, draws=DRAWS, confidence=0.95, seed=seed)
    found = (estimate.mean, estimate.low, estimate.high)
    np.testing.assert_allclose(found, dataclasses.astuple(wanted), atol=1e-12, rtol=0)


# differences


def test_a_paired_difference_is_the_bootstrap_of_the_differences(found):
    base = np.mean([totals(run.evaluation.policy) for run in NLL], axis=0)
    gain = found.difference("dpo · seed 4")
    assert_is(gain, totals(DPO.evaluation.policy) - base)
    unpaired = [found.value(row, "total") for row in ("dpo · seed 4", "nll")]
    assert gain.high - gain.low < sum(total.high - total.low for total in unpaired) / 2


def test_against_one_run_the_differences_are_to_that_run():
    for written in ("runs/nll-1-0", "runs/nll-1-0/", "./runs/nll-1-0", "runs/../runs/nll-1-0"):
        found = compare_runs(RUNS, against=written)
        assert found.against == "nll · seed 1"
    gain = totals(DPO.evaluation.policy) - totals(NLL[1].evaluation.policy)
    assert_is(found.difference("dpo · seed 4"), gain)


@pytest.mark.parametrize("against", ["nll-1-0", "dpo", "nll", "a_lol", "reference", "data"])
def test_what_is_compared_with_itself_differs_by_exactly_nothing(against):
    found = compare_runs(RUNS, against=against)
    itself = [group.row_name for group in found.groups if found.is_base(group)] or [found.against]
    for part in (*PARTS, "total"):
        gain = found.difference(itself[0], part)
        assert (gain.mean, gain.low, gain.high) == (0.0, 0.0, 0.0)
    for source in SOURCES:
        assert found.difference(itself[0], "total", source).mean == 0.0


def test_against_the_reference_a_run_has_the_differences_of_its_own_evaluation():
    runs = [run_result("a_lol", seed=seed, shared_seed=seed) for seed in (3, 4)]
    found = compare_runs(runs, against="reference")
    assert len(found.references) == 2
    for run, row in zip(runs, found.rows, strict=False):
        gains = [ends(found.difference(row.name, part)) for part in (*PARTS, "total")]
        for gain, wanted in zip(gains, run.evaluation.differences, strict=True):
            np.testing.assert_allclose(
                dataclasses.astuple(gain), dataclasses.astuple(wanted), atol=1e-12, rtol=0
            )
    assert "each run's reference is its own" in " ".join(description(found))


def test_the_data_counts_a_prompt_once_however_many_responses_it_has():
    found = compare_runs(RUNS, against="data")
    gain = totals(DPO.evaluation.policy) - totals(DPO.evaluation.data)
    assert len(DPO.evaluation.data) == 2 * PROMPTS
    assert_is(found.difference("dpo · seed 4"), gain)


def test_the_difference_of_a_set_is_taken_over_its_prompts_alone(found):
    base = np.mean([totals(run.evaluation.policy) for run in NLL], axis=0)
    gain = totals(DPO.evaluation.policy) - base
    for place, source in enumerate(SOURCES):
        assert_is(found.difference("dpo · seed 4", "total", source), gain[place::2])


def test_the_order_of_the_runs_changes_no_figure(found):
    again = compare_runs(RUNS[::-1], against=None)
    assert again.estimates.keys() == found.estimates.keys()
    for key, estimate in found.estimates.items():
        other = again.estimates[key]
        np.testing.assert_allclose(estimate.mean, other.mean, atol=1e-12, rtol=1e-12)
        assert (estimate.seeds, estimate.low is None) == (other.seeds, other.low is None)


# rows and seeds


def test_a_run_keeps_the_figures_of_its_evaluation(found):
    scores = DPO.evaluation.systems[2]
    assert ends(found.value("dpo · seed 4", "total")) == scores.reward
    assert ends(found.value("dpo · seed 4", PARTS[1])) == scores.components[1]
    assert ends(found.value("dpo · seed 4", "distinct-2")) == scores.distinct[1]
    assert ends(found.value("dpo · seed 4", "kl")) == DPO.evaluation.kl
    assert found.value("dpo · seed 4", "tokens").mean == DPO.fit.cost.tokens
    assert found.value("dpo · seed 4", "step").mean == 40
    one = DPO.evaluation.sets[1].systems[2].reward
    assert ends(found.value("dpo · seed 4", "total", SOURCES[1])) == one


def test_seeds_have_a_mean_with_an_interval_over_prompts_and_a_spread_over_runs(found):
    mean = found.value("a_lol", "total")
    each = [totals(run.evaluation.policy) for run in A_LOL]
    assert_is(mean, np.mean(each, axis=0))
    runs = [found.value(f"a_lol · seed {seed}", "total").mean for seed in (0, 1, 2)]
    assert (mean.least, mean.most, mean.seeds) == (min(runs), max(runs), 3)
    np.testing.assert_allclose(mean.sd, np.std([each_one.mean() for each_one in each], ddof=1))


def test_seeds_have_an_interquartile_mean(found):
    names = [f"a_lol · seed {seed}" for seed in (0, 1, 2)]
    for test_set in (EVERY, SOURCES[0]):
        each = np.array([found.value(name, "total", test_set).mean for name in names])
        mean = found.value("a_lol", "total", test_set)
        wanted = over_seeds(each, draws=DRAWS, confidence=0.95, seed=0)
        assert (mean.iqm, mean.iqm_low, mean.iqm_high) == dataclasses.astuple(wanted)
        assert mean.iqm == pytest.approx(each.mean())  # of three values, none is cut
        assert mean.iqm_low < mean.iqm < mean.iqm_high
    assert found.value("dpo · seed 4", "total").iqm is None


def test_a_single_seed_has_no_spread(found):
    alone = found.value("dpo · seed 4", "total")
    assert (alone.seeds, alone.sd, alone.least, alone.most) == (1, None, None, None)
    assert found.value("dpo", "total") is None
    assert not compare_runs((DPO,), against=None).has_spread


def test_the_reference_is_one_row_and_so_is_the_data(found):
    assert [group.row_name for group in found.groups] == [
        "nll",
        "a_lol",
        "dpo · seed 4",
        "reference",
        "data",
    ]
    assert found.value("reference", "kl") is None and found.value("data", "total") is not None


def test_nll_is_the_base_where_there_is_one_and_else_the_reference(found):
    assert found.against == "nll"
    assert compare_runs(A_LOL, against=None).against == "reference"


def test_a_kl_that_was_not_measured_is_left_out():
    bare = dataclasses.replace(DPO, evaluation=dataclasses.replace(DPO.evaluation, kl=None))
    found = compare_runs((bare, *NLL), against=None)
    assert found.value("dpo · seed 4", "kl") is None and found.value("nll", "kl") is not None


# names


def names(*runs) -> list[str]:
    return [row.name for group in group_runs(runs) for row in group.rows if group.kind == "run"]


def test_a_run_is_called_by_objective_and_seed():
    assert names(*NLL, DPO) == ["nll · seed 0", "nll · seed 1", "dpo · seed 4"]


def test_runs_that_share_objective_and_seed_are_called_by_workdir():
    same = [run_result("nll", seed=1, shared_seed=s, workdir=f"runs/{s}/nll") for s in (0, 1)]
    other = dataclasses.replace(same[1], workdir=same[1].workdir.with_name("more"))
    assert names(same[0], other) == ["nll · nll", "nll · more"]
    assert names(*same) == ["nll · runs/0/nll", "nll · runs/1/nll"]


def test_other_settings_are_another_row_and_in_its_name():
    runs = [
        run_result("a_lol", seed=s, **{"objective.clip": c}) for c in (0.2, 0.9) for s in (0, 1)
    ]
    assert [group.name for group in group_runs(runs)][:2] == [
        "a_lol (clip=0.2)",
        "a_lol (clip=0.9)",
    ]
    assert names(*runs)[0] == "a_lol (clip=0.2) · seed 0"


def test_a_setting_that_some_runs_do_not_have_is_no_difference():
    one, other = run_result("nll"), run_result("dpo", **{"objective.beta": 0.1})
    assert differing_settings((one, other)) == ()
    assert differing_settings((one, other, run_result("dpo", **{"objective.beta": 0.2}))) == (
        "objective.beta",
    )


def test_without_a_choice_two_kinds_of_nll_are_compared_with_the_reference():
    kinds = [run_result("nll", **{"objective.clip": c}) for c in (0.2, 0.9)]
    assert compare_runs(kinds[:1], against=None).against == "nll"
    assert compare_runs(kinds, against=None).against == "reference"
    assert compare_runs(kinds, against="nll (clip=0.2)").against == "nll (clip=0.2)"


def test_a_step_of_a_fit_is_counted_in_optimizer_steps():
    run = run_result("ppo", updates=4)
    found = compare_runs((run, *NLL), against=None)
    assert found.value("ppo · seed 0", "step").mean == 4 * run.fit.step
    assert found.value("nll · seed 0", "step").mean == NLL[0].fit.step


def test_a_source_called_all_is_not_all_of_them():
    made = evaluated(answers(3, 0.1), answers(70, 0.0), 0)
    names = dict(zip(SOURCES, ("all", "web"), strict=True))
    rows = {
        n: scored_table(
            dataclasses.replace(row, source=names[row.source]) for row in getattr(made, n)
        )
        for n in ("data", "reference", "policy")
    }
    sets = tuple(dataclasses.replace(one, name=names[one.name]) for one in made.sets)
    run = run_result("nll", evaluation=dataclasses.replace(made, **rows, sets=sets))
    found = compare_runs((run,), against="reference")
    every, part = (found.value("nll · seed 0", "total", *s) for s in ((), ("all",)))
    assert every.mean == made.systems[2].reward.mean != part.mean == sets[0].systems[2].reward.mean


def test_as_few_settings_as_tell_the_rows_apart_are_named():
    def run(**settings):
        return run_result("dpo", **settings)

    runs = [
        run(a=1, beta=0.1, path="x" * 60 + "one"),
        run(a=1, beta=0.2, path="x" * 60 + "two"),
        run(a=2, beta=0.3, path="x" * 60 + "six"),
    ]
    assert [group.name for group in group_runs(runs)][:3] == [
        f"dpo (beta={b})" for b in (0.1, 0.2, 0.3)
    ]
    crossed = [run(a=a, beta=beta) for a in (1, 2) for beta in (0.1, 0.2)]
    assert [group.name for group in group_runs(crossed)][3] == "dpo (a=2, beta=0.2)"


def test_rows_that_no_setting_tells_apart_are_called_by_workdir():
    runs = [run_result("dpo", workdir="runs/x"), run_result("dpo", workdir="runs/y")]
    runs[1] = dataclasses.replace(runs[1], model="two")
    assert names(*runs) == ["dpo (x) · seed 0", "dpo (y) · seed 0"]


def test_a_name_that_no_row_has_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="no row is called 'aloll': did you mean 'a_lol'"):
        compare_runs(RUNS, against="aloll")


def test_a_name_of_two_workdirs_is_refused():
    runs = [run_result("nll", workdir="a/same"), run_result("dpo", workdir="b/same")]
    with pytest.raises(UserError, match="2 workdirs are called 'same'"):
        compare_runs(runs, against="same")
    assert compare_runs(runs, against="b/same").against == "dpo · seed 0"


# words


def test_intervals_have_the_confidence_of_evaluate():
    assert CONFIDENCE == evaluate.CONFIDENCE


def test_the_verdict_counts_who_is_better_and_names_the_best(found):
    gains = {g.row_name: found.difference(g.row_name) for g in found.trained if g.name != "nll"}
    better = sum(gain.low > 0 for gain in gains.values())
    judged = verdict(found)
    assert f"{better} of 2 earn reliably more" in judged.sentence
    assert judged.tone == "better" and "Best: a_lol earns" in judged.sentence
    assert "too narrow" in judged.sentence


def test_worse_and_undecided_are_said():
    worse = compare_runs((*NLL, run_result("pro", lift=-0.5)), against=None)
    assert verdict(worse).badge == "Worse than nll"
    same = dataclasses.replace(NLL[0], objective="dpo")
    open_one = compare_runs((*NLL, same), against=None)
    assert verdict(open_one).tone == "open"
    assert verdict(compare_runs(NLL, against="nll")).badge == "Nothing to compare"


def test_one_prompt_is_no_proof():
    made = evaluated(answers(1, 0.5, prompts=1), answers(2, 0.0, prompts=1), 0)
    found = compare_runs((run_result("a_lol", evaluation=made),), against=None)
    assert verdict(found).badge == "Too few prompts"


def test_where_nothing_scores_there_are_texts_and_costs_but_no_rewards():
    runs = [dataclasses.replace(run, evaluation=unscored(run.evaluation)) for run in RUNS]
    found = compare_runs(runs, against=None)
    assert verdict(found).badge == "Not scored"
    metrics = {metric for _, _, _, metric in found.estimates}
    assert "total" not in metrics and {"length", "distinct-1", "tokens"} <= metrics
    assert all(np.isfinite(estimate.mean) for estimate in found.estimates.values())


def test_figures_are_rounded_to_what_can_be_read(found):
    total = found.value("nll", "total")
    small = total._replace(mean=-0.06449, low=-0.1, high=0.0051)
    assert format_estimate(small) == ("-0.064", "[-0.100, 0.005]")
    assert format_estimate(small._replace(against="x"))[1] == "[-0.100, +0.005]"
    large = total._replace(mean=12.3456, low=-1.0, high=99.9)
    assert format_estimate(large) == ("12.35", "[-1.00, 99.90]")
    assert format_value("flops", 1.5e15) == "1.50e15"
    assert format_value("tokens", 12345.0) == "12,345"
    assert format_value("step", 40.0) == "40" and format_value("step", 40.5) == "40.5"


def test_the_ids_of_by_prompt_are_in_the_order_of_the_rows():
    ids, values = by_prompt(DPO.evaluation.data[::-1])
    assert ids[0] == f"t{PROMPTS - 1}" and values.shape == (PROMPTS, 3)
    np.testing.assert_allclose(values[::-1, 2], totals(DPO.evaluation.data))
