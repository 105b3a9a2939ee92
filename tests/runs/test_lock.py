"""The lock of a workdir: one run at a time, in a local folder and in a bucket."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from alol_jax import paths
from alol_jax.errors import UserError
from alol_jax.runs import lock
from alol_jax.runs.lock import DEAD_SECONDS, lock_workdir


@pytest.fixture(params=["local", "bucket"])
def folder(request):
    """A workdir of either kind, not there yet."""
    if request.param == "local":
        return request.getfixturevalue("tmp_path") / "run"
    return request.getfixturevalue("bucket") / "run"


def test_a_second_run_is_refused_and_one_after_the_first_is_not(folder):
    with lock_workdir(folder):
        with pytest.raises(UserError, match=f"^{folder}: another run is using this workdir"):
            with lock_workdir(folder):
                raise AssertionError("both hold the lock")
    with lock_workdir(folder):
        pass


def test_a_run_that_fails_gives_its_lock_back(folder):
    with pytest.raises(ValueError, match="bad"), lock_workdir(folder):
        raise ValueError("bad")
    with lock_workdir(folder):
        pass


def _held(folder, *, host: str, pid: int, silent: float = 0.0) -> None:
    holder = {"host": host, "pid": pid, "since": "2026-01-02 03:04:05 UTC"}
    holder["alive"] = time.time() - silent
    paths.write_text(folder / ".lock", json.dumps(holder))


def test_who_holds_the_lock_of_a_bucket_is_named_with_the_way_to_remove_it(bucket):
    _held(bucket, host="tpu-7", pid=41)
    with pytest.raises(UserError) as caught, lock_workdir(bucket):
        pass
    assert re.fullmatch(
        f"{bucket}: another run is using this workdir: process 41 on tpu-7, since 2026-01-02 "
        r"03:04:05 UTC; if that run is dead, start again in 1[78]\d s, or remove its lock: gcloud "
        f"storage rm {bucket}/.lock",
        str(caught.value),
    )
    paths.remove(bucket / ".lock")
    with lock_workdir(bucket):
        pass


def test_the_lock_of_a_run_of_this_machine_that_was_killed_is_taken_over(bucket):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    _held(bucket, host=socket.gethostname(), pid=dead.pid)
    with lock_workdir(bucket):
        assert json.loads(paths.read_text(bucket / ".lock"))["pid"] == os.getpid()
    assert not paths.exists(bucket / ".lock")


def test_the_lock_of_a_run_of_another_machine_that_shows_no_life_is_taken_over(bucket):
    _held(bucket, host="tpu-7", pid=41, silent=DEAD_SECONDS + 1)
    with lock_workdir(bucket):
        assert json.loads(paths.read_text(bucket / ".lock"))["pid"] == os.getpid()


def test_a_run_shows_life_in_its_lock(bucket, monkeypatch):
    monkeypatch.setattr(lock, "ALIVE_SECONDS", 0.05)
    with lock_workdir(bucket):
        began = json.loads(paths.read_text(bucket / ".lock"))
        until = time.monotonic() + 30
        while (now := json.loads(paths.read_text(bucket / ".lock")))["alive"] <= began["alive"]:
            assert time.monotonic() < until
        assert now["id"] == began["id"]
    assert not paths.exists(bucket / ".lock")


def test_a_bucket_that_cannot_be_written_is_refused_before_anything_runs(faults):
    for place, said in (
        ("gs://closed/run", "gs://closed/run/.lock: no permission"),
        ("gs://nobody/run", "gs://nobody/run: there is no such bucket"),
    ):
        with pytest.raises(UserError, match=f"^{said}"), lock_workdir(paths.path_of(place)):
            pass
