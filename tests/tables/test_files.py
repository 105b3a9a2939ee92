"""Tables on disk: what is written is what is read, bit by bit."""

import dataclasses
import math
import resource
import signal
import struct

import pyarrow as pa
import pytest

from alol_jax.errors import UserError
from alol_jax.runs.artifacts import load_result, save_result
from alol_jax.tables import files
from alol_jax.tables.table import Table
from alol_jax.types import Scored
from tests.tables.rows import Row, row


@dataclasses.dataclass(frozen=True)
class TrainingTableOfRows:
    rows: Table[Row]


def _table(*numbers: int) -> Table[Row]:
    return Table.of(map(row, numbers), Row)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "stage" / "rows.arrow"


def test_rows_come_back_equal_and_in_order(file):
    rows = tuple(map(row, range(101)))
    files.write(file, Table.of(rows, Row))
    assert files.read(file, Row) == rows


def test_rows_are_found_by_number_over_several_batches(file, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 7)
    rows = tuple(map(row, range(30)))
    files.write(file, Table.of(rows, Row))
    back = files.read(file, Row)
    assert back.arrow["text"].num_chunks == 5
    assert len(back) == 30 and tuple(back) == rows
    assert [back[n] for n in (0, 6, 7, 29, -1, -30)] == [rows[n] for n in (0, 6, 7, 29, 29, 0)]
    assert back[5:9] == rows[5:9] and back[::-7] == rows[::-7]
    with pytest.raises(IndexError):
        back[30]


def test_floats_keep_every_bit(file):
    values = (math.nan, math.inf, -math.inf, -0.0, 5e-324, math.pi)
    odd = dataclasses.replace(row(0), share=math.nan, shares=values)
    files.write(file, Table.of([odd], Row))
    (back,) = files.read(file, Row)
    assert struct.pack("7d", back.share, *back.shares) == struct.pack("7d", odd.share, *values)


def test_a_table_without_rows_is_read_as_no_rows(file):
    files.write(file, _table())
    back = files.read(file, Row)
    assert len(back) == 0 and tuple(back) == ()


def test_any_arrow_library_reads_the_file(file):
    files.write(file, _table(*range(5)))
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    assert table["share"].to_pylist()[3] == 3.1 and table["texts"].to_pylist()[2] == ["", "b ä"]


def test_a_row_of_fifteen_megabytes_comes_back(file):
    large = dataclasses.replace(row(0), text="ü" * 7_500_000)
    files.write(file, Table.of([row(1), large], Row))
    assert files.read(file, Row)[1] == large


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no such table: delete its folder and run that stage"):
        files.read(tmp_path / "rows.arrow", Row)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_a_clear_error(file, share):
    files.write(file, _table(*range(100)))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"rows\.arrow is damaged, perhaps cut short"):
        files.read(file, Row)


def test_a_file_of_another_version_is_a_clear_error(file, monkeypatch):
    monkeypatch.setattr(files, "VERSION", "0")
    files.write(file, _table(1))
    monkeypatch.undo()
    with pytest.raises(UserError, match="has version 0, this program reads 2"):
        files.read(file, Row)


def test_a_file_of_another_platform_is_a_clear_error(file, monkeypatch):
    monkeypatch.setattr(files.sys, "byteorder", "big")
    files.write(file, _table(1))
    monkeypatch.undo()
    with pytest.raises(UserError, match="has byteorder big, this program reads little"):
        files.read(file, Row)


def test_a_table_of_other_rows_names_the_fields_that_differ(file):
    files.write(file, _table(1))
    with pytest.raises(UserError, match=r"no Scored rows \(.*response.* differ\)"):
        files.read(file, Scored)


def test_a_second_table_in_the_same_place_is_refused(file):
    files.write(file, _table(0))
    with pytest.raises(FileExistsError):
        files.write(file, _table(0))


def test_a_full_disk_is_an_error_of_the_system_and_the_next_table_takes_the_place(tmp_path):
    """The limit of a file's size stands in for the disk: both fail in the middle of a write."""
    table = _table(*range(2000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_result(tmp_path, TrainingTableOfRows(table))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    save_result(tmp_path, TrainingTableOfRows(table))
    assert load_result(tmp_path, TrainingTableOfRows).rows == table
