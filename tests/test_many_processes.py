"""Runs in several real processes: the same results as in one, also after one was killed."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from alol_jax.runs.checkpoint import load_params
from alol_jax.runs.workdir import finished_stage
from alol_jax.tables import files
from alol_jax.types import Annotated, Scored
from tests.many_processes import ended, run_together, started
from tests.running import SMALL, run_here

WEIGHTS = ("03_fit_reference/trained", "05_fit_value/params", "07_fit_policy/trained")
TABLES = {
    "02_score/train.arrow": Scored,
    "04_generate/rows.arrow": Scored,
    "06_select/rows.arrow": Annotated,
    "08_evaluate/policy.arrow": Scored,
}
WORK = ("computed_tokens", "flops", "step")  # of the grids, which have a row for every device


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with as many devices as the two have."""
    folder = tmp_path_factory.mktemp("alone")
    assert run_here(folder, *SMALL, devices=2).returncode == 0
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return folder, run_together(folder, 2, *SMALL)


def losses(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = (folder / stage / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in WORK} for line in lines]


def assert_same_results(one: Path, other: Path) -> None:
    for stage in ("03_fit_reference", "07_fit_policy"):
        for ours, theirs in zip(losses(one, stage), losses(other, stage), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    for name in WEIGHTS:
        ours, theirs = load_params(one / name), load_params(other / name)
        assert ours.keys() == theirs.keys()
        for path in ours:
            np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-5, atol=1e-5)
    for name, row_type in TABLES.items():
        ours, theirs = files.read(one / name, row_type), files.read(other / name, row_type)
        assert list(ours["example_id"]) == list(theirs["example_id"])
        np.testing.assert_allclose(ours["reward"], theirs["reward"], atol=1e-6)
    ours, theirs = (json.loads((f / "09_report/results.json").read_text()) for f in (one, other))
    assert_close(ours, theirs)


def assert_close(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_close(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    else:
        assert ours == theirs


def test_two_processes_give_the_results_of_one(alone, pair):
    folder, processes = pair
    assert [process.code for process in processes] == [0, 0], processes[0].err
    assert_same_results(alone, folder)


def test_the_first_process_alone_prints(pair):
    _, processes = pair
    assert "done in" in processes[0].out
    said = [line for line in processes[1].out.splitlines() if not line.startswith("[Gloo]")]
    assert said == []
    assert processes[1].err == ""


@pytest.mark.slow
def test_four_processes_give_the_results_of_one(tmp_path):
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert run_here(alone, *SMALL, devices=4).returncode == 0
    processes = run_together(run, 4, *SMALL)
    assert [process.code for process in processes] == [0] * 4, processes[0].err
    assert_same_results(alone, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "mesh"),
    [
        pytest.param(1, {"data": 1, "fsdp": 2}, id="each process has a half"),
        pytest.param(2, {"data": 2, "tensor": 2}, id="tensor stays inside a process"),
    ],
)
def test_a_model_in_parts_on_two_processes_gives_the_results_of_one(devices, mesh, tmp_path):
    alone, run = tmp_path / "alone", tmp_path / "run"
    parts = (*SMALL, *(f"--config.mesh.{axis}={size}" for axis, size in mesh.items()))
    assert run_here(alone, *parts, devices=2 * devices).returncode == 0
    processes = run_together(run, 2, *parts, devices=devices)
    assert [process.code for process in processes] == [0, 0], processes[0].err
    assert_same_results(alone, run)


def wait_for(file: Path, processes) -> None:
    until = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < until, f"{file} did not come"
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def copied_before(stage: int, folder: Path, run: Path) -> Path:
    """A copy of a finished run without this stage and later ones."""
    later = [f"{number:02d}_*" for number in range(stage, 10)]
    return Path(shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*later)))


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_the_run_goes_on_bitwise(pair, tmp_path):
    cut = copied_before(7, tmp_path / "cut", pair[0])
    with started(cut, 2, *SMALL) as processes:
        wait_for(cut / "07_fit_policy" / "checkpoints", processes)
        processes[1].send_signal(signal.SIGKILL)
        began = time.monotonic()
        found = ended(processes)
    assert time.monotonic() - began < 60
    assert [process.code for process in found] == [2, -signal.SIGKILL]
    assert "process 1 (" in found[0].error and "ended" in found[0].error
    assert finished_stage(cut, "fit_policy") is None
    assert [process.code for process in run_together(cut, 2, *SMALL)] == [0, 0]
    assert_bitwise(pair[0], cut)


def assert_bitwise(one: Path, other: Path) -> None:
    for name in WEIGHTS:
        ours, theirs = load_params(one / name), load_params(other / name)
        assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
    for name in TABLES:
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.slow
def test_sigterm_in_one_process_stops_all_at_one_step_and_the_run_goes_on(pair, tmp_path):
    cut = copied_before(3, tmp_path / "cut", pair[0])
    with started(cut, 2, *SMALL) as processes:
        wait_for(cut / "03_fit_reference" / "checkpoints", processes)
        processes[1].send_signal(signal.SIGTERM)
        found = ended(processes)
    assert [process.code for process in found] == [143, 143], found[0].err
    assert "run the same command again" in found[0].err
    assert [process.code for process in run_together(cut, 2, *SMALL)] == [0, 0]
    assert_bitwise(pair[0], cut)


@pytest.mark.slow
def test_a_run_begun_with_two_processes_goes_on_with_one(alone, pair, tmp_path):
    folder = copied_before(7, tmp_path / "run", pair[0])
    result = run_here(folder, *SMALL, devices=2)
    assert result.returncode == 0, result.stderr
    assert "[select] already done" in result.stdout
    assert finished_stage(folder, "fit_policy") is not None
    assert_same_results(alone, folder)
