"""What is read of a finished run: the settings that tell kinds of runs apart, and no others."""

import pytest

from alol_jax.reports.compare.rows import differing_settings
from alol_jax.reports.finished_runs import read_runs, why_not_comparable
from tests.reports.runs import config_of, finish


def _differing(folder, objective, **changed):
    """The settings that tell a run from another one of the same objective."""
    finish(folder / "one", config_of(objective))
    finish(folder / "other", config_of(objective, policy_seed=1, **changed))
    return differing_settings(read_runs([folder / "one", folder / "other"]))


def test_an_objective_is_told_by_what_it_reads(tmp_path):
    changed = {"objective__responses": 3, "objective__scale": 2.0, "objective__clip": 0.5}
    found = {name: _differing(tmp_path / name, name, **changed) for name in ("nll", "a_lol", "pro")}
    assert found["nll"] == ()
    assert found["a_lol"] == ("objective.clip",)
    assert found["pro"] == ("objective.scale", "objective.responses")


def test_ppo_is_told_by_its_own_section(tmp_path):
    changed = {"ppo__clip": 0.5, "objective__clip": 0.5}
    assert _differing(tmp_path / "ppo", "ppo", **changed) == ("ppo.clip",)
    assert _differing(tmp_path / "nll", "nll", **changed) == ()


def test_a_rollout_counts_as_its_optimizer_steps(tmp_path):
    finish(tmp_path / "ppo", config_of("ppo", ppo__prompts=16, ppo__epochs=3, ppo__batch_size=8))
    finish(tmp_path / "nll", config_of("nll"))
    ppo, nll = read_runs([tmp_path / "ppo", tmp_path / "nll"])
    assert (ppo.updates, nll.updates) == (3 * 16 // 8, 1)


def _why_not(folder, one, other):
    """Why two runs that differ in these fields cannot be compared."""
    finish(folder / "one", config_of("nll", **one))
    finish(folder / "other", config_of("nll", policy_seed=1, **other))
    return why_not_comparable(folder / "one", folder / "other")


def test_answers_on_another_scale_than_the_rows_are_another_reward(tmp_path):
    """The rewards are the same, but those of `evaluate` are not transformed."""
    own = {"evaluate__rewards": {"help_ful": 1.0}}
    ranks = {"score__transform": "rank"}
    assert _why_not(tmp_path / "plain", {}, own) == ""
    said = _why_not(tmp_path / "ranks", ranks, ranks | own)
    assert "another reward of the answers: config.evaluate.rewards" in said


@pytest.mark.parametrize(("rows", "alike"), [("scorer", True), ("labels", False)])
def test_how_many_rows_are_compared_matters_for_labels_alone(rows, alike, tmp_path):
    fields = [{"score__rows": rows, "score__compared": count} for count in (10, 20)]
    said = _why_not(tmp_path, *fields)
    assert (said == "") is alike
    assert alike or "another reward: config.score.compared = 20" in said
