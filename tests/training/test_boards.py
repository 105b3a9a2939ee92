"""TensorBoard and W&B show every step once, whatever was killed on the way."""

import builtins
import json
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from alol_jax.errors import UserError
from alol_jax.training.boards import check_boards
from alol_jax.training.metrics import MetricLog
from alol_jax.types import LogOptions
from tests.running import ROOT, environment

BOARD = LogOptions(tensorboard=True)
WANDB = LogOptions(wandb=True, project="trial", config={"seed": 3, "inner": {"rate": 0.5}})
BLOCK, HEADER = 32768, 7  # of W&B's record files, which have the form of LevelDB's logs


def _log(folder, *steps, resume_at=0, options=BOARD):
    """Logs the steps; the log is left open, as by a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    log = MetricLog(folder / "metrics.jsonl", resume_at=resume_at, options=options)
    for step in steps:
        log.write(step, {"loss": jnp.float32(step / 8), "nll": jnp.float32(2 * step)})
    log.flush()
    return log


def _events(folder):
    """(tag, step, value) of every scalar in TensorBoard's record files."""
    found = []
    for path in sorted(folder.glob("tensorboard/events.*")):
        data = path.read_bytes()
        while data:  # u64 length, u32 checksum, the event, u32 checksum
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return found


def _scalars(*steps):
    return [(*one,) for n in steps for one in (("loss", n, n / 8), ("nll", n, 2.0 * n))]


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path):
    _log(tmp_path, 1, 2).close()
    assert _events(tmp_path) == _scalars(1, 2)


def test_nothing_is_shown_unless_asked(tmp_path):
    _log(tmp_path, 1, options=LogOptions()).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_shows_every_step_once_after_kills_that_lost_or_overtook_its_events(tmp_path):
    killed = [_log(tmp_path, 1, 2, 3)]  # not kept: what of it is in the files is not known
    killed.append(_log(tmp_path, 3, 4, 5, resume_at=2))
    killed[-1].keep()  # two steps beyond the checkpoint that the next one goes on from
    _log(tmp_path, 4, 5, 6, resume_at=3).close()
    assert _events(tmp_path) == _scalars(1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("options", "package", "said"),
    [
        (
            BOARD,
            "tensorboardX",
            "config.log.tensorboard: the package tensorboardX is not installed",
        ),
        (WANDB, "wandb", "config.log.wandb: the package wandb is not installed: pip install"),
    ],
)
def test_a_missing_package_is_one_line_before_anything_runs(options, package, said, monkeypatch):
    found = builtins.__import__

    def without(name, *rest, **named):
        if name == package:
            raise ImportError(name)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=said):
        check_boards(options)
    check_boards(LogOptions())


# W&B: skipped where the package is missing, as it is by default


@pytest.fixture
def offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="needs pip install wandb")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    wandb.teardown()  # it keeps the settings that it has read
    yield wandb
    wandb.teardown()


def _records(folder):
    """The records of the one run in W&B's offline files."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block is empty
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def _history(folder):
    """(step, loss) of every step that the run shows."""
    shown = []
    for record in _records(folder):
        if record.HasField("history"):
            named = {
                item.key or item.nested_key[0]: item.value_json for item in record.history.item
            }
            shown.append((record.history.step.num, json.loads(named["loss"])))
    return shown


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.test_boards import WANDB, _log
_log(Path(sys.argv[1]), 1, 2, 3, options=WANDB)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_wandb_shows_every_step_once_after_a_kill(tmp_path, offline):
    stage = tmp_path / "trial" / "07_fit_policy"
    program = [sys.executable, "-c", KILLED, str(stage)]
    killed = subprocess.run(program, cwd=ROOT, env=environment(), timeout=300)
    assert killed.returncode == -signal.SIGKILL
    first = (stage / "wandb_id.txt").read_text()
    _log(stage, 3, 4, resume_at=2, options=WANDB).close()
    assert _history(stage) == [(1, 0.125), (2, 0.25), (3, 0.375), (4, 0.5)]
    run = next(record.run for record in _records(stage) if record.HasField("run"))
    assert (run.display_name, run.project, run.run_group) == ("trial/fit_policy", "trial", "trial")
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["seed"] == 3
    assert run.run_id == first == (stage / "wandb_id.txt").read_text()


def test_a_stage_that_is_computed_again_is_another_run_of_wandb(tmp_path, offline):
    _log(tmp_path / "07_fit", 1, options=WANDB).close()
    _log(tmp_path / "again" / "07_fit", 1, options=WANDB).close()
    one, other = (tmp_path / name / "wandb_id.txt" for name in ("07_fit", "again/07_fit"))
    assert one.read_text() != other.read_text()


def test_wandb_without_login_is_one_line_before_anything_runs(tmp_path, offline, monkeypatch):
    check_boards(WANDB)  # offline it needs none
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    offline.teardown()
    with pytest.raises(UserError, match="W&B has no login: run `wandb login`, or set WANDB_API"):
        check_boards(WANDB)
