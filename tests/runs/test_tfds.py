"""Rows as a tensorflow-datasets dataset: read by others without TensorFlow, and by us as data."""

import logging
import subprocess
import sys

import pytest

from alol_jax.errors import UserError
from alol_jax.runs import tfds
from alol_jax.tables.table import Table
from alol_jax.tasks.sources import read_file
from tests.tables.rows import Row, row


def test_rows_come_back_equal_and_in_order_over_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "ROWS_PER_SHARD", 7)
    rows = tuple(map(row, range(30)))
    tfds.write(tmp_path / "rows", "rows", Table.of(rows, Row))
    assert len(list((tmp_path / "rows").glob("*array_record*"))) == 5
    back = [one for _, one in read_file(tmp_path / "rows")]
    assert [
        Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()}) for r in back
    ] == (list(rows))


def test_any_reader_of_tensorflow_datasets_reads_a_row_by_number_without_tensorflow(tmp_path):
    tfds.write(tmp_path / "rows", "rows", Table.of(map(row, range(5)), Row))
    program = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.builder_from_directory({str(tmp_path / 'rows')!r}).as_data_source()\n"
        "print(source['train'][3]['share'], 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["3.1", "False"]


def test_nothing_is_logged(tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        tfds.write(tmp_path / "rows", "rows", Table.of([], Row))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name == "absl"] == []


def test_a_second_dataset_in_the_same_folder_is_refused(tmp_path):
    tfds.write(tmp_path, "rows", Table.of([row(0)], Row))
    with pytest.raises(FileExistsError):
        tfds.write(tmp_path, "rows", Table.of([row(0)], Row))


def test_a_damaged_dataset_is_a_clear_error(tmp_path):
    tfds.write(tmp_path / "rows", "rows", Table.of([row(0)], Row))
    for file in (tmp_path / "rows").glob("*array_record*"):
        file.write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read by tensorflow-datasets"):
        list(read_file(tmp_path / "rows"))
