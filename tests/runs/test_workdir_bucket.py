"""A workdir in a bucket: the rules of a local one, whatever breaks off or lags behind."""

import jax.numpy as jnp
import pytest

from alol_jax import paths
from alol_jax.errors import Interrupted, UserError
from alol_jax.runs.artifacts import load_result, save_result
from alol_jax.runs.checkpoint import Checkpoints, save_params
from alol_jax.runs.workdir import finished_stage
from alol_jax.tables import files
from alol_jax.tables.table import Table
from alol_jax.training.metrics import MetricLog, read_curves
from alol_jax.types import Example, LogOptions, Splits
from tests.runs.test_workdir import Made, Trial
from tests.runs.test_workdir_shared import _alone, _swept

EXAMPLES = Table.of(
    [Example(str(n), f"prompt {n}", ("a", "b"), "s", ()) for n in range(9)], Example
)


def test_a_second_run_loads_every_result_and_writes_nothing(bucket, faults):
    assert Trial(bucket).all() == Made(3.0, ("first", "0.5", "second", "third"))
    faults.written.clear()
    after = Trial(bucket)
    assert after.all().value == 3.0 and after.computed == [] and faults.written == []


def test_the_record_of_a_stage_is_written_last(bucket, faults):
    Trial(bucket).first()
    order = [name.rpartition("/")[2] for name in faults.written]
    assert order == ["started.json", "config.json", "result.json", "record.json"]
    assert paths.names(bucket / "01_first") == ["config.json", "record.json", "result.json"]


def test_a_changed_config_is_refused_and_with_redo_computed_anew(bucket):
    Trial(bucket).all()
    with pytest.raises(UserError, match=f"^{bucket}/01_first was made with config.first.size = 3"):
        Trial(bucket, size=6).first()
    trial = Trial(bucket, size=6, redo=True)
    assert trial.all().value == 4.0 and trial.computed == ["other", "first", "second", "third"][1:]


@pytest.mark.parametrize("name", ["started", "result", "record"])
def test_a_write_that_never_succeeds_leaves_a_run_that_goes_on(
    bucket, faults, monkeypatch, caplog, name
):
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", _at_once)
    faults.refused_writes = {f"01_first/{name}.json": 100}
    with pytest.raises(UserError, match=f"^{bucket}/01_first/{name}.json: the bucket does not"):
        Trial(bucket).first()
    assert finished_stage(bucket, "first") is None and caplog.records == []
    faults.refused_writes = {f"01_first/{name}.json": 2, "second/result": 1}
    faults.broken_writes = {"third/record": 1}
    assert Trial(bucket).all().value == 3.0
    again = Trial(bucket)
    assert again.all().value == 3.0 and again.computed == []


async def _at_once(seconds):
    pass


def test_what_an_interrupted_stage_kept_is_there_when_it_goes_on(bucket):
    def interrupted(context):
        paths.write_text(context.folder / "state", "half way")
        raise Interrupted("saved")

    with pytest.raises(Interrupted):
        Trial(bucket).first(interrupted)
    assert finished_stage(bucket, "first") is None
    with pytest.raises(UserError, match="01_first was made with config.first.size = 3"):
        Trial(bucket, size=6).first()
    seen = []
    Trial(bucket).first(lambda context: seen.append(paths.read_text(context.folder / "state")))
    assert seen == ["half way"]


def test_a_listing_that_lags_behind_hides_no_result(bucket, faults):
    faults.unlisted = r"record\.json|result\.json"
    Trial(bucket).all()
    again = Trial(bucket)
    assert again.all().value == 3.0 and again.computed == []
    with pytest.raises(UserError, match="01_first was made with config.first.size = 3"):
        Trial(bucket, size=6).first()


def test_runs_of_a_sweep_share_their_stages_in_a_bucket_too(bucket):
    assert _swept(bucket, "one").with_late(1).value == 3.0
    two = _swept(bucket, "two")
    assert two.with_late(5).value == 7.0 and two.computed == ["third"]
    assert paths.names(bucket / "two" / "01_first") == ["link.json"]
    alone = _alone(bucket / "one")
    assert alone.with_late(1).value == 3.0 and alone.computed == []


# what stages keep


def test_tables_come_back_and_are_renamed(bucket):
    table = files.collect(bucket / "rows.arrow", [EXAMPLES, EXAMPLES[:2]], Example)
    assert len(table) == 11 and table[:9] == EXAMPLES
    files.write(bucket / "kept.arrow", table)
    assert files.read(bucket / "kept.arrow", Example) == table
    with pytest.raises(UserError, match=f"^{bucket}/rows.arrow: there is no such file"):
        files.read(bucket / "rows.arrow", Example)


def test_results_are_read_where_there_is_no_local_copy(bucket, tmp_path, monkeypatch):
    splits = Splits(EXAMPLES, EXAMPLES[:1], EXAMPLES[:2], ("note",))
    save_result(bucket / "result", splits)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert load_result(bucket / "result", Splits) == splits


def test_the_metric_log_goes_on_from_what_was_kept_with_the_checkpoint(bucket):
    def log(resume_at):
        return MetricLog(bucket / "metrics.jsonl", resume_at=resume_at, options=LogOptions())

    first = log(0)
    for step in (1, 2, 3):
        first.write(step, {"loss": jnp.float32(step)})
        if step == 2:
            first.keep()
    second = log(2)  # the first was killed in step 3
    assert [curve.steps for curve in read_curves(bucket / "metrics.jsonl")] == [(1, 2)]
    second.write(3, {"loss": jnp.float32(9)})
    second.close()
    (curve,) = read_curves(bucket / "metrics.jsonl")
    assert curve.steps == (1, 2, 3) and curve.values == (1.0, 2.0, 9.0)


def test_tensorboard_events_are_in_the_bucket(bucket):
    log = MetricLog(bucket / "metrics.jsonl", resume_at=0, options=LogOptions(tensorboard=True))
    log.write(1, {"loss": jnp.float32(1)})
    log.close()
    (events,) = paths.names(bucket / "tensorboard")
    assert len(paths.local_copy(bucket / "tensorboard" / events).read_bytes()) > 100


def test_tensorboard_events_of_a_dropped_run_do_not_come_back(bucket):
    for run in (1, 2):
        log = MetricLog(bucket / "metrics.jsonl", resume_at=0, options=LogOptions(tensorboard=True))
        log.write(1, {"loss": jnp.float32(run)})
        log.close()
        if run == 1:
            paths.remove(bucket / "tensorboard")
    assert len(paths.names(bucket / "tensorboard")) == 1


def test_a_checkpoint_that_the_bucket_refuses_is_one_line(faults):
    closed = paths.path_of("gs://closed/params")
    with pytest.raises(UserError, match="^gs://closed/params: "):
        save_params(closed, {"a": jnp.arange(3.0)})


def test_half_a_checkpoint_is_none_and_only_the_latest_and_the_best_stay(bucket, faults):
    state = {"a": jnp.arange(6.0), "b": jnp.float32([[1, 2]])}
    checkpoints = Checkpoints(bucket / "checkpoints")
    for step in (1, 2, 3):
        more = {name: leaf + step for name, leaf in state.items()}
        checkpoints.save(step, more, {"seen": step}, best=1)
    checkpoints.wait()
    paths.remove(bucket / "checkpoints" / "3" / "commit_success.txt")  # as if killed before it
    checkpoints.close()
    found = Checkpoints(bucket / "checkpoints")
    assert found.latest() == 1
    back, record = found.restore(1, state)
    found.close()
    assert record == {"seen": 1} and (back["a"] == state["a"] + 1).all()
