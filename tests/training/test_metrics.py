"""The metric log: one step late, cut at the step that a run goes on from, read as curves."""

import json

import jax.numpy as jnp
import pytest

from alol_jax.errors import UserError
from alol_jax.training.metrics import MetricLog, read_curves
from alol_jax.types import Curve, LogOptions


def _open(tmp_path, resume_at=0):
    return MetricLog(tmp_path / "metrics.jsonl", resume_at=resume_at, options=LogOptions())


def _lines(tmp_path):
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _write(log, *steps):
    for step in steps:
        log.write(step, {"loss": jnp.float32(step / 8), "nll": jnp.float32(2 * step)})


def test_metrics_are_written_one_step_late(tmp_path):
    log = _open(tmp_path)
    counts = []
    for step in (1, 2, 3):
        _write(log, step)
        counts.append(len(_lines(tmp_path)))
    log.flush()
    counts.append(len(_lines(tmp_path)))
    log.close()
    assert counts == [0, 1, 2, 3]
    assert _lines(tmp_path)[0] == {"step": 1, "loss": 0.125, "nll": 2.0}


def test_closing_writes_what_is_pending_and_nothing_twice(tmp_path):
    log = _open(tmp_path)
    _write(log, 1, 2)
    log.flush()
    log.flush()
    log.close()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    log = _open(tmp_path)
    _write(log, 1, 2, 3, 4)
    log.close()
    log = _open(tmp_path, resume_at=2)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]
    _write(log, 3)
    log.close()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', '{"step": 2}'])
def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path, rest):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n' + rest, encoding="utf-8")
    assert read_curves(tmp_path / "metrics.jsonl") == (Curve("loss", (1,), (0.5,)),)
    log = _open(tmp_path, resume_at=5)
    _write(log, 6)
    log.close()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 6]


def test_a_fresh_run_empties_an_old_log(tmp_path):
    log = _open(tmp_path)
    _write(log, 1, 2)
    log.close()
    _open(tmp_path, resume_at=0).close()
    assert _lines(tmp_path) == []


def test_curves_are_read_back_in_order_of_appearance(tmp_path):
    log = _open(tmp_path)
    _write(log, 1, 2)
    log.write(4, {"loss": jnp.float32(4.0), "late": jnp.float32(jnp.inf)})
    log.close()
    assert read_curves(tmp_path / "metrics.jsonl") == (
        Curve("loss", (1, 2, 4), (0.125, 0.25, 4.0)),
        Curve("nll", (1, 2), (2.0, 4.0)),
        Curve("late", (4,), (float("inf"),)),
    )


@pytest.mark.parametrize("loss", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_stops_the_fit_and_leaves_the_log_readable(tmp_path, loss):
    log = _open(tmp_path)
    _write(log, 1, 2)
    log.write(3, {"loss": jnp.float32(loss)})
    with pytest.raises(UserError, match="diverged: the loss of step 3 is (nan|inf); lower the opt"):
        log.write(4, {"loss": jnp.float32(1.0)})
    log.close()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]


def test_a_missing_log_has_no_curves(tmp_path):
    assert read_curves(tmp_path / "metrics.jsonl") == ()
