"""`alol_jax.export --what=data`: the annotated rows for other tools, and as data of a run here."""

import pytest

from alol_jax.errors import UserError
from alol_jax.export import export, parse
from alol_jax.runs.data_files import FORMATS
from alol_jax.runs.workdir import Run
from alol_jax.tasks.registry import get_task
from alol_jax.tasks.sources import read_file
from alol_jax.types import TrainingTable
from configs import own
from tests.tiny_run import annotated, annotated_rows

ROWS = annotated_rows(annotated(n, response=n % 3 + 1, kept=n % 4 != 0) for n in range(30))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir that holds nothing but a training table."""
    folder = tmp_path_factory.mktemp("run")

    def select(*, context) -> TrainingTable:
        return TrainingTable(ROWS)

    numbers = {"select": 6}
    config = own.get_config()
    options = {"allowed": numbers, "redo": False, "stopping": lambda: False}
    run = Run(folder, numbers, config, say=lambda line: None, **options)
    run.stage("select", select)
    return folder


def exported(workdir, out, form):
    export(parse([f"--workdir={workdir}", "--what=data", f"--out={out}", f"--format={form}"]))
    return out if form == "tfds" else out / f"train.{form}"


@pytest.mark.parametrize("form", FORMATS)
def test_every_row_comes_with_what_select_found_about_it(workdir, tmp_path, form):
    rows = [row for _, row in read_file(exported(workdir, tmp_path / "out", form))]
    assert len(rows) == len(ROWS)
    for row, stored in zip(rows, ROWS, strict=True):
        assert row["id"] == stored.example_id and row["prompt"] == stored.prompt_text
        assert row["response"] == stored.response_text and row["source"] == stored.source
        for name in ("reward", "value", "advantage", "kept"):
            assert row[name] == getattr(stored, name)
        assert tuple(row["prompt_ids"]) == stored.prompt
        assert tuple(row["response_ids"]) == stored.response
        assert tuple(row["ref_logp"]) == stored.ref_logp


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_exported_is_data_of_another_run(workdir, tmp_path, form):
    config = own.get_config()
    config.task.train_file = str(exported(workdir, tmp_path / "out", form))
    config.task.validation, config.task.test = 0, 0
    splits = get_task(config.task).load(config.task)
    (one,) = splits.train  # all rows have the same prompt
    assert one.prompt == "p" and one.rewards == tuple(row.reward for row in ROWS)


def test_an_unknown_format_and_a_run_without_a_table_are_refused(workdir, tmp_path):
    with pytest.raises(UserError, match="--format: no 'csv': expected one of jsonl, arrow, tfds"):
        exported(workdir, tmp_path / "out", "csv")
    with pytest.raises(UserError, match="has no finished select"):
        exported(tmp_path, tmp_path / "out", "jsonl")
    assert not (tmp_path / "out").exists()
