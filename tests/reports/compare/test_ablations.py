"""Ablations: what is compared with what, seed by seed."""

import math

import numpy as np
import pytest

from alol_jax.reports.compare.ablations import ablation_section, ablations_of, base_of
from alol_jax.reports.compare.rows import group_runs
from alol_jax.reports.compare.table import compare_runs
from tests.reports.runs import run_result

SETTINGS = {"objective.clip": 0.9, "policy.sampling": "auto"}


def variant(seed, lift=0.1, objective="a_lol", **changes):
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    folder = f"runs/{objective}-{seed}-{'-'.join(map(str, changes.values()))}"
    return run_result(objective, seed=seed, lift=lift, workdir=folder, **settings)


PLAIN = [variant(seed) for seed in (0, 1, 2)]
UNCLIPPED = [variant(seed, 0.4, objective__clip=float("inf")) for seed in (1, 2, 3)]
UNIFORM = [variant(0, 0.0, policy__sampling="uniform")]
RUNS = (*UNCLIPPED, *PLAIN, *UNIFORM, variant(0, objective="nll"))


@pytest.fixture(scope="module")
def found():
    return compare_runs(RUNS, against=None)


def test_the_base_has_the_settings_that_most_groups_have():
    groups = [group for group in group_runs(RUNS) if group.rows[0].run.objective == "a_lol"]
    groups = [group for group in groups if group.kind == "run"]
    base = base_of(groups)
    assert [row.run for row in base.rows] == PLAIN


def test_every_other_group_is_compared_seed_by_seed_and_named_by_what_changed(found):
    clip, sampling = ablations_of(found)
    assert (clip.objective, clip.changed) == ("a_lol", "clip=inf")
    assert sampling.changed == "sampling=uniform"
    means = {
        (run.seed, run.settings["objective.clip"]): run.evaluation.systems[2].reward.mean
        for run in (*PLAIN, *UNCLIPPED)
    }
    gains = [means[seed, float("inf")] - means[seed, 0.9] for seed in (1, 2)]  # both have these
    np.testing.assert_allclose(clip.each, gains)
    assert clip.middle.low <= clip.middle.mean <= clip.middle.high
    (alone,) = sampling.each  # of one seed, which has no interval
    assert sampling.middle.mean == alone and math.isnan(sampling.middle.low)


def test_the_section_shows_every_ablation_with_its_mean_and_interquartile_mean(found):
    section = ablation_section(found)
    lines = section.tables[0].rows
    assert [line.cells[0].text for line in lines] == ["a_lol: clip=inf", "a_lol: sampling=uniform"]
    for line, one in zip(lines, ablations_of(found), strict=True):
        exact = [cell.exact for cell in line.cells[1:]]
        assert exact == [len(one.each), pytest.approx(np.mean(one.each)), one.middle.mean]
    clip, alone = (line.cells[3].text for line in lines)
    assert clip.count("[") == 1 and "[" not in alone  # one seed has no interval
    assert "clip=inf" in section.figures[0].svg


def test_without_two_settings_of_an_objective_there_is_no_section():
    assert ablation_section(compare_runs(PLAIN, against=None)) is None
