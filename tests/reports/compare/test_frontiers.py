"""Reward against KL: the chosen steps, and the validations that measured their KL."""

import dataclasses

import pytest

from alol_jax.reports.compare import frontiers as module
from alol_jax.reports.compare.frontiers import frontier_section
from alol_jax.reports.compare.table import compare_runs
from tests.reports.runs import run_result


def with_kl(run):
    """The run, whose validations measured a KL of a hundredth of their step."""
    looks = tuple(dataclasses.replace(one, kl=one.step / 100) for one in run.fit.validations)
    return dataclasses.replace(run, fit=dataclasses.replace(run.fit, validations=looks))


SLOW = [with_kl(run_result("a_lol", seed=seed, workdir=f"runs/s{seed}", rate=1)) for seed in (0, 1)]
FAST = with_kl(run_result("a_lol", workdir="runs/f", rate=2))
OTHER = run_result("nll")


@pytest.fixture
def drawn(monkeypatch):
    """What the two figures are drawn of."""
    found = {}

    def frontier(points, start, **labels):
        found["points"], found["start"] = points, start
        return "<svg/>"

    def curves(series, *, whole, **labels):
        found["looks"] = {one.name: one.runs for one in series}
        assert not whole
        return "<svg/>"

    monkeypatch.setattr(module, "frontier", frontier)
    monkeypatch.setattr(module, "curves", curves)
    found["section"] = frontier_section(compare_runs((*SLOW, FAST, OTHER), against=None))
    return found


def test_groups_of_one_objective_are_one_family(drawn):
    assert [point.family for point in drawn["points"]] == ["a_lol", "a_lol", "nll"]
    assert [len(point.seeds) for point in drawn["points"]] == [2, 1, 1]
    (point, *_) = drawn["points"]
    kls = [run.evaluation.kl.mean for run in SLOW]
    assert point.x == pytest.approx(sum(kls) / 2)
    means = [run.evaluation.systems[2].reward.mean for run in SLOW]
    assert point.middle.mean == pytest.approx(sum(means) / 2)
    assert (point.middle.low, point.middle.high) == pytest.approx((min(means), max(means)))
    assert all(other.middle is None for other in drawn["points"][1:])
    start = SLOW[0].evaluation.systems[1].reward.mean
    assert drawn["start"] == start


def test_validations_are_points_where_their_kl_was_measured(drawn):
    slow, fast, other = drawn["looks"].values()
    assert (len(slow), len(fast), other) == (2, 1, ())
    for (x, y), run in zip((*slow, *fast), (*SLOW, FAST), strict=True):
        assert x.tolist() == [0.2, 0.4, 0.6]
        assert y.tolist() == [look.score for look in run.fit.validations]
    assert [figure.title for figure in drawn["section"].figures] == ["Chosen steps", "Validations"]


def test_runs_that_measured_no_kl_have_the_chosen_steps_alone():
    section = frontier_section(compare_runs((OTHER,), against="reference"))
    assert [figure.title for figure in section.figures] == ["Chosen steps"]


def test_nothing_is_drawn_where_nothing_was_measured():
    silent = dataclasses.replace(OTHER, evaluation=dataclasses.replace(OTHER.evaluation, kl=None))
    assert frontier_section(compare_runs((silent,), against="reference")) is None
