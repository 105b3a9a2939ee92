"""The curves of all runs: every run is drawn, over what two fits can be compared by."""

import numpy as np
import pytest

from alol_jax.reports.compare import curves as module
from alol_jax.reports.compare.table import compare_runs
from tests.reports.runs import run_result

NLL = [run_result("nll", seed=seed) for seed in (0, 1)]
PPO = run_result("ppo", updates=4)


@pytest.fixture
def drawn(monkeypatch):
    """(label, over) -> group -> the runs of a figure, instead of the figure."""
    found = {}

    def curves(series, *, label, over, marks, symlog=False):
        found[label, over] = {one.name: one.runs for one in series}
        return "<svg/>"

    monkeypatch.setattr(module, "curves", curves)
    section = module.curve_section(compare_runs((*NLL, PPO), against=None))
    assert len(section.figures) == len(found)
    return found


def test_the_looks_of_every_run_are_drawn_over_optimizer_steps(drawn):
    looks = drawn["mean validation reward", "optimizer step"]
    assert [len(runs) for runs in looks.values()] == [2, 1]
    for run, (steps, scores) in zip((*NLL, PPO), (*looks["nll"], *looks["ppo"]), strict=True):
        assert scores.tolist() == [look.score for look in run.fit.validations]
        assert steps.tolist() == [20 * run.updates, 40 * run.updates, 60 * run.updates]


def test_the_same_looks_are_drawn_over_the_tokens_trained_on(drawn):
    tokens = drawn["mean validation reward", "trained tokens"]
    for run, (x, scores) in zip((*NLL, PPO), (*tokens["nll"], *tokens["ppo"]), strict=True):
        assert scores.tolist() == [look.score for look in run.fit.validations]
        np.testing.assert_allclose(x, run.fit.cost.tokens * np.array([1, 2, 3]) / 3)


def test_logged_metrics_that_mean_the_same_are_drawn_and_losses_are_not(drawn):
    labels = {label for label, _ in drawn}
    assert labels == {"mean validation reward", "KL to the reference (nats)"}
    kl = drawn["KL to the reference (nats)", "optimizer step"]
    (steps, values), (logged,) = kl["ppo"][0], [c for c in PPO.fit.curves if c.name != "loss"]
    assert steps.tolist() == [4 * step for step in logged.steps]
    assert values.tolist() == list(logged.values)
    assert len(kl["nll"]) == 2


def test_a_curve_that_only_one_run_has_is_not_drawn(monkeypatch):
    monkeypatch.setattr(module, "curves", lambda *_, **__: "<svg/>")
    section = module.curve_section(compare_runs((PPO,), against="reference"))
    assert [figure.title for figure in section.figures] == [
        "Validation by steps",
        "Validation by tokens",
    ]
