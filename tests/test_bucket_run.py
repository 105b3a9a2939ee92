"""The whole program with its workdir in a bucket: the results of a local run, killed or not."""

import signal

import numpy as np
import pytest

from alol_jax import paths
from alol_jax.runs.checkpoint import load_params
from tests.running import SMALL, refused, run_here
from tests.test_pipeline import FITS, STAGES, start, wait_for

FIRST = "--stages=load,score,fit_reference"
TEXTS = (
    "03_fit_reference/metrics.jsonl",
    "06_select/data_report.json",
    "07_fit_policy/metrics.jsonl",
    "09_report/results.json",
    "09_report/results.csv",
)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("local") / "run"
    result = run_here(workdir, *SMALL)
    assert result.returncode == 0, result.stderr
    return workdir


def arrays(workdir, fits=FITS):
    """Every trained array of the run, as bytes."""
    return {
        f"{fit}/{path}": np.asarray(leaf).tobytes()
        for fit in fits
        for path, leaf in load_params(workdir.joinpath(*fit.split("/"))).items()
    }


def test_a_run_in_a_bucket_equals_a_local_one_and_a_second_computes_nothing(local, bucket, faults):
    first = run_here(bucket, *SMALL)
    assert first.returncode == 0, first.stderr
    assert arrays(bucket) == arrays(local)
    for text in TEXTS:
        assert paths.read_text(bucket / text) == paths.read_text(local / text)
    folders = [f"{n:02d}_{stage}" for n, stage in enumerate(STAGES, 1)]
    assert paths.names(bucket) == folders  # the lock is gone
    for folder in folders:
        assert paths.names(bucket / folder) == paths.names(local / folder)
    faults.written.clear()
    second = run_here(bucket, *SMALL)
    assert second.stdout.count("already done") == len(STAGES) and "running" not in second.stdout
    assert [name.rpartition("/")[2] for name in faults.written] == [".lock"]


def test_a_killed_run_goes_on_in_its_bucket_bit_by_bit(local, bucket):
    process = start(bucket, FIRST)
    assert wait_for(process, "[fit_reference] step 2/")  # so that of step 0 is complete
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert ".lock" in paths.names(bucket)
    result = run_here(bucket, *SMALL, FIRST)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("already done") == 2 and "resuming at step" in result.stdout
    assert arrays(bucket, FITS[:1]) == arrays(local, FITS[:1])
    log = TEXTS[0]
    assert paths.read_text(bucket / log) == paths.read_text(local / log)


def test_a_bucket_that_refuses_the_run_is_one_line(faults):
    for place, said in (
        ("gs://closed/run", "gs://closed/run/.lock: no permission"),
        ("gs://nobody/run", "gs://nobody/run: there is no such bucket"),
        ("s3://mine/run", "s3://mine/run: a workdir is a local folder or in gs://"),
        ("gss://mine/run", "gss://mine/run: no buckets with gss://"),
    ):
        assert refused(run_here(place, *SMALL)).startswith(f"error: {said}")
