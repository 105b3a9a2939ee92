"""A run out of memory: one line that names the stage's program, exit code 2; the rest stays."""

import jax
import pytest

from alol_jax.training.fit import Update
from tests.running import SMALL, refused, run_here

SAID = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."
FIRST = "--stages=load,score,fit_reference"


def fails(*arguments, **named):
    raise jax.errors.JaxRuntimeError(SAID)


def starved(monkeypatch, rows):
    """Steps on grids of more rows than that fail where they are called."""
    real = Update.__call__

    def step(self, state, frozen, batch):
        return fails() if batch.grids[0].ids.shape[0] > rows else real(self, state, frozen, batch)

    monkeypatch.setattr(Update, "__call__", step)


def test_a_step_without_room_is_one_line_and_smaller_grids_go_on(tmp_path, monkeypatch):
    grids = ("--config.model.width=208", "--config.model.rows=4")
    with monkeypatch.context() as patch:
        starved(patch, rows=2)
        line = refused(run_here(tmp_path / "run", *SMALL, *grids, FIRST))
    assert line.startswith(
        "error: out of memory in a step of fit_reference, on a grid of 4 × 208 tokens (16 GiB "
        "asked): lower, in this order, config.model.remat=full; config.model.logprob_chunk=512; "
        "config.model.rows=2; config.model.quantisation=nf4; more devices (config.mesh); "
    )
    assert (tmp_path / "run" / "02_score" / "record.json").exists()
    fewer = (grids[0], "--config.model.rows=2", "--config.model.remat=full")
    later = run_here(tmp_path / "run", *SMALL, *fewer, FIRST)
    assert later.returncode == 0, later.stderr
    assert "[score] already done" in later.stdout and "resuming at step 0" in later.stdout


def test_with_fit_auto_the_run_goes_on_by_itself(tmp_path, monkeypatch):
    starved(monkeypatch, rows=2)
    grids = ("--config.model.width=208", "--config.model.rows=4", "--config.model.fit=auto")
    result = run_here(tmp_path / "run", *SMALL, *grids, FIRST)
    assert result.returncode == 0, result.stderr
    assert (
        "[fit_reference] out of memory on grids of 4 × 208 tokens: on with 2 rows in a grid, and "
        "twice as many grids for the same step" in result.stdout
    )


GENERATE = "load,score,fit_reference,generate"


@pytest.mark.parametrize(
    ("where", "stages", "said"),
    [
        ("alol_jax.stages.load.read_splits", "load", "the stage load (16 GiB asked): lower, in "),
        (
            "alol_jax.decoding.answers.respond",
            GENERATE,
            "answers of generate, on a grid of 8 × 164 tokens (16 GiB asked): lower, in this "
            "order, config.decode.batch_size=4; ",
        ),
    ],
)
def test_every_stage_says_what_it_did(where, stages, said, tmp_path, monkeypatch):
    monkeypatch.setattr(where, fails)
    short = ("--config.task.limit=8", "--config.reference.epochs=0")
    line = refused(run_here(tmp_path / "run", *SMALL, *short, f"--stages={stages}"))
    assert line.startswith(f"error: out of memory in {said}")


def test_more_rows_than_the_host_can_hold_are_one_line(tmp_path):
    rows = f"--config.model.rows={2**40}"
    line = refused(run_here(tmp_path / "run", *SMALL, rows, FIRST))
    assert line.startswith("error: out of memory in a step of fit_reference, on a grid of 10995")
    assert "TiB asked" in line and f"config.model.rows={2**39}" in line


def test_a_wrong_fit_is_one_line(tmp_path):
    line = refused(run_here(tmp_path / "run", "--config.model.fit=atuo"))
    assert "config.model.fit: no 'atuo': did you mean 'auto'?" in line
