"""The preemption certificate: moments over all stages, results compared, real kills."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from alol_jax.runs.artifacts import save_result
from alol_jax.types import Cost, Policy
from benchmarks.preemption.disturb import BETWEEN, EXIT, Disturbed, Kill, certificate, draw_moments
from benchmarks.run_results import digests
from tests.running import ROOT, SMALL, environment

STAGES = [
    ("start-up", 0.0),
    ("load", 4.0),
    (BETWEEN, 4.1),
    ("score", 4.2),
    (BETWEEN, 8.0),
    (EXIT, 9.0),
]


def _drawn(count, seed=0):
    return draw_moments(STAGES, count, np.random.default_rng(seed))


def test_every_stage_gets_a_moment_within_its_time():
    moments = _drawn(3)
    assert [moment.stage for moment in moments] == ["start-up", "load", "score"]
    for moment, longest in zip(moments, (4.0, 0.2, 4.8), strict=True):
        assert 0.0 <= moment.seconds < longest


def test_the_other_moments_are_uniform_over_the_run_and_in_order():
    moments = _drawn(3000)
    order = [stage for stage, _ in STAGES]
    assert moments == sorted(moments, key=lambda m: (order.index(m.stage), m.seconds))
    share = np.mean([moment.stage == "start-up" for moment in moments])
    assert abs(share - 4.0 / 9.0) < 0.05
    assert _drawn(20) == _drawn(20) and _drawn(20) != _drawn(20, seed=1)


def _workdir(folder, *, seconds=1.0, weight=0.5):
    stage = folder / "03_fit_reference"
    stage.mkdir(parents=True)
    trained = {"layers/kernel": np.full((2, 3), weight, np.float32)}
    save_result(stage, Policy(trained, 4, (), (), Cost(10, 20, 30.0, seconds)))
    (stage / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


def test_results_that_differ_only_in_seconds_have_the_same_hashes(tmp_path):
    one = digests(_workdir(tmp_path / "one"))
    assert set(one) == {
        f"03_fit_reference/{n}" for n in ("trained", "result.json", "metrics.jsonl")
    }
    assert digests(_workdir(tmp_path / "two", seconds=2.0)) == one


def test_one_other_weight_is_one_other_hash(tmp_path):
    one, other = digests(_workdir(tmp_path / "1")), digests(_workdir(tmp_path / "2", weight=0.51))
    assert {name for name in one if one[name] != other[name]} == {"03_fit_reference/trained"}


KILLS = [
    Kill("fit_policy", "SIGKILL", -9, 0.01, ""),
    Kill("fit_policy", "SIGTERM", 143, 1.5, "stopped: saved at step 3 of 6"),
]


def test_a_certificate_counts_the_kills():
    found = certificate({"a": "1"}, {"a": "1"}, Disturbed(KILLS, 3, 1, [{"a": "1"}]))
    assert found["passed"] and (found["kills"], found["starts"]) == (2, 3)
    assert found["kills_by_stage"] == {"fit_policy": {"SIGKILL": 1, "SIGTERM": 1}}
    assert found["longest_seconds_from_sigterm_to_the_end"] == 1.5


@pytest.mark.parametrize(
    ("again", "killed"),
    [
        ({"a": "1"}, {"a": "2"}),
        ({"a": "1"}, {}),
        ({"a": "1"}, {"a": "1", "b": "3"}),
        ({}, {"a": "1"}),
    ],
)
def test_another_missing_or_added_result_is_no_pass(again, killed):
    found = certificate({"a": "1"}, again, Disturbed(KILLS, 3, 1, [killed]))
    assert not found["passed"] and found["results_equal"] == found["results"] - 1


def test_leaving_too_late_after_sigterm_is_no_pass():
    late = [KILLS[0], KILLS[1]._replace(seconds=10.5)]
    assert not certificate({"a": "1"}, {"a": "1"}, Disturbed(late, 3, 1, [{"a": "1"}]))["passed"]


@pytest.mark.slow
def test_two_kills_leave_the_results_of_an_undisturbed_run(tmp_path):
    cache = ROOT / ".pytest_cache" / "preemption"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.preemption", "--kills=2"),
            f"--compile_cache={cache}",
            *(f"--workdir={tmp_path / 'runs'}", "--", *SMALL),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "runs" / "certificate.json").read_text())
    assert found["kills_by_signal"] == {"SIGKILL": 1, "SIGTERM": 1}
    assert found["results"] == found["results_equal"] > 40
    ended = sum(kill["code"] == 0 for kill in found["each_kill"])  # its last stage in the time left
    assert found["starts"] >= 3 - ended
    assert {kill["code"] for kill in found["each_kill"]} <= {
        -signal.SIGKILL,
        -signal.SIGTERM,
        143,
        0,
    }
