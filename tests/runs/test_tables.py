"""Tables: what is written is what is read, bit by bit, without TensorFlow."""

import dataclasses
import logging
import math
import struct
import subprocess
import sys
import time

import pytest

from alol_jax.runs import tables
from alol_jax.types import Annotated, Scored, UserError


@dataclasses.dataclass(frozen=True)
class Row:
    text: str
    number: int
    share: float
    flag: bool
    ids: tuple[int, ...]
    shares: tuple[float, ...]
    texts: tuple[str, ...]


def _row(n: int) -> Row:
    return Row(
        text=f"Zeile {n}: ünïcödé 🍋 \n\0",
        number=-(2**62) + n,
        share=0.1 + n,
        flag=n % 2 == 0,
        ids=tuple(range(n % 5)),
        shares=(0.1, 1e-320, -1e308)[: n % 4],
        texts=("", "b ä", "c\0")[: n % 4],
    )


def test_rows_come_back_equal_and_in_order(tmp_path):
    rows = tuple(_row(n) for n in range(101))
    tables.write(tmp_path / "rows", "rows", rows, Row)
    assert tables.read(tmp_path / "rows", Row) == rows


def test_types_come_back_as_python_types(tmp_path):
    tables.write(tmp_path / "rows", "rows", [_row(3)], Row)
    (row,) = tables.read(tmp_path / "rows", Row)
    assert [type(value) for value in dataclasses.astuple(row)] == [
        str,
        int,
        float,
        bool,
        tuple,
        tuple,
        tuple,
    ]
    assert {type(value) for value in row.ids} == {int}
    assert {type(value) for value in row.shares} == {float}


def test_order_is_kept_over_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 7)
    rows = tuple(_row(n) for n in range(30))
    tables.write(tmp_path / "rows", "rows", rows, Row)
    assert len(list((tmp_path / "rows").glob("*array_record*"))) == 5
    assert tables.read(tmp_path / "rows", Row) == rows


def test_floats_keep_every_bit(tmp_path):
    values = (math.nan, math.inf, -math.inf, -0.0, 5e-324, math.pi)
    row = dataclasses.replace(_row(0), share=math.nan, shares=values)
    tables.write(tmp_path / "rows", "rows", [row], Row)
    (back,) = tables.read(tmp_path / "rows", Row)
    assert struct.pack("7d", back.share, *back.shares) == struct.pack("7d", row.share, *values)


def test_a_table_without_rows_is_read_as_no_rows(tmp_path):
    tables.write(tmp_path / "rows", "rows", [], Row)
    assert tables.read(tmp_path / "rows", Row) == ()


def test_rows_of_types_with_postponed_annotations_can_be_stored(tmp_path):
    scored = (Scored("a", "p", "r", "s", (), 0.5), Scored("b", "p", "r", "s", (0.25, 0.5), 0.75))
    tables.write(tmp_path / "scored", "scored", scored, Scored)
    assert tables.read(tmp_path / "scored", Scored) == scored
    table = (Annotated("a", "s", "p", "r", (1, 2), (3,), (-0.5,), 0.5, 0.25, 0.25, True),)
    tables.write(tmp_path / "annotated", "training_table", table, Annotated)
    assert tables.read(tmp_path / "annotated", Annotated) == table


def test_any_reader_of_tensorflow_datasets_reads_a_row_by_number_without_tensorflow(tmp_path):
    tables.write(tmp_path / "rows", "rows", [_row(n) for n in range(5)], Row)
    program = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.builder_from_directory({str(tmp_path / 'rows')!r}).as_data_source()\n"
        "print(source['train'][3]['share'], 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["3.1", "False"]


def test_two_thousand_rows_are_written_in_about_a_second(tmp_path):
    row = Annotated(
        "a", "s", "p" * 500, "r" * 500, (1,) * 200, (2,) * 200, (-0.5,) * 200, *[0.5] * 3, True
    )
    start = time.perf_counter()
    tables.write(tmp_path / "rows", "rows", [row] * 2000, Annotated)
    assert time.perf_counter() - start < 5  # generous: the machine may be busy


def test_nothing_is_logged(tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        tables.write(tmp_path / "rows", "rows", [], Row)
        tables.read(tmp_path / "rows", Row)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name == "absl"] == []


def test_a_folder_without_a_table_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="holds no table"):
        tables.read(tmp_path, Row)


def test_a_table_of_other_rows_names_the_fields_that_differ(tmp_path):
    tables.write(tmp_path / "rows", "rows", [_row(1)], Row)
    with pytest.raises(UserError, match=r"no Scored rows \(fields that differ: .*response"):
        tables.read(tmp_path / "rows", Scored)


def test_a_lone_surrogate_is_a_clear_error(tmp_path):
    rows = [_row(0), dataclasses.replace(_row(1), text="\ud83d")]
    with pytest.raises(UserError, match="Row row 1, field 'text': the text is not valid Unicode"):
        tables.write(tmp_path / "rows", "rows", rows, Row)


def test_a_second_table_in_the_same_folder_is_refused(tmp_path):
    tables.write(tmp_path, "rows", [_row(0)], Row)
    with pytest.raises(FileExistsError):
        tables.write(tmp_path, "rows", [_row(0)], Row)


def test_a_token_id_beyond_32_bits_is_refused(tmp_path):
    with pytest.raises(OverflowError):
        tables.write(tmp_path, "rows", [dataclasses.replace(_row(0), ids=(2**31,))], Row)


def test_a_field_that_cannot_be_stored_is_named(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Odd:
        values: dict

    with pytest.raises(TypeError, match="Odd.values"):
        tables.write(tmp_path, "odd", [], Odd)
