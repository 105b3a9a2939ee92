"""Tables: what is written is what is read, bit by bit; a row is made where it is looked at."""

import dataclasses
import math
import struct

import numpy as np
import pyarrow as pa
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


@pytest.fixture
def file(tmp_path):
    return tmp_path / "stage" / "rows.arrow"


def test_rows_come_back_equal_and_in_order(file):
    rows = tuple(_row(n) for n in range(101))
    tables.write(file, rows, Row)
    assert tables.read(file, Row) == rows


def test_rows_are_found_by_number_over_several_batches(file, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 7)
    rows = tuple(_row(n) for n in range(30))
    tables.write(file, rows, Row)
    back = tables.read(file, Row)
    assert len(back) == 30 and tuple(back) == rows
    assert [back[n] for n in (0, 6, 7, 29, -1, -30)] == [rows[n] for n in (0, 6, 7, 29, 29, 0)]
    assert back[5:9] == rows[5:9] and back[::-7] == rows[::-7]
    with pytest.raises(IndexError):
        back[30]


def test_a_column_of_numbers_is_an_array(file, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 2)
    tables.write(file, [_row(n) for n in range(5)], Row)
    back = tables.read(file, Row)
    np.testing.assert_array_equal(back.column("share"), [0.1 + n for n in range(5)])
    assert back.column("flag").tolist() == [True, False, True, False, True]
    assert back.column("number").dtype == np.int64


def test_types_come_back_as_python_types(file):
    tables.write(file, [_row(3)], Row)
    (row,) = tables.read(file, Row)
    kinds = [type(value) for value in dataclasses.astuple(row)]
    assert kinds == [str, int, float, bool, tuple, tuple, tuple]
    assert {type(value) for value in row.ids} == {int}
    assert {type(value) for value in row.shares} == {float}
    assert {type(value) for value in row.texts} == {str}


def test_floats_keep_every_bit(file):
    values = (math.nan, math.inf, -math.inf, -0.0, 5e-324, math.pi)
    row = dataclasses.replace(_row(0), share=math.nan, shares=values)
    tables.write(file, [row], Row)
    (back,) = tables.read(file, Row)
    assert struct.pack("7d", back.share, *back.shares) == struct.pack("7d", row.share, *values)


def test_a_table_without_rows_is_read_as_no_rows(file):
    tables.write(file, [], Row)
    back = tables.read(file, Row)
    assert len(back) == 0 and tuple(back) == () and back.column("share").shape == (0,)


def test_rows_of_types_with_postponed_annotations_can_be_stored(tmp_path):
    scored = (Scored("a", "p", "r", "s", (), 0.5), Scored("b", "p", "r", "s", (0.25, 0.5), 0.75))
    tables.write(tmp_path / "scored.arrow", scored, Scored)
    assert tables.read(tmp_path / "scored.arrow", Scored) == scored
    table = (Annotated("a", "s", "p", "r", (1, 2), (3,), (-0.5,), 0.5, 0.25, 0.25, True),)
    tables.write(tmp_path / "annotated.arrow", table, Annotated)
    assert tables.read(tmp_path / "annotated.arrow", Annotated) == table


def test_any_arrow_library_reads_the_file(file):
    tables.write(file, [_row(n) for n in range(5)], Row)
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    assert table["share"].to_pylist()[3] == 3.1 and table["texts"].to_pylist()[2] == ["", "b ä"]


def test_a_row_of_fifteen_megabytes_comes_back(file):
    row = dataclasses.replace(_row(0), text="ü" * 7_500_000)
    tables.write(file, [_row(1), row], Row)
    assert tables.read(file, Row)[1] == row


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no such table: delete its folder and run that stage"):
        tables.read(tmp_path / "rows.arrow", Row)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_a_clear_error(file, share):
    tables.write(file, [_row(n) for n in range(100)], Row)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"rows\.arrow is damaged, perhaps cut short"):
        tables.read(file, Row)


def test_a_file_of_another_version_is_a_clear_error(file, monkeypatch):
    monkeypatch.setattr(tables, "VERSION", "0")
    tables.write(file, [_row(1)], Row)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has version 0, this program reads 1"):
        tables.read(file, Row)


def test_a_table_of_other_rows_names_the_fields_that_differ(file):
    tables.write(file, [_row(1)], Row)
    with pytest.raises(UserError, match=r"no Scored rows \(.*response.* differ\)"):
        tables.read(file, Scored)


@pytest.mark.parametrize(
    ("field", "value"), [("text", "\ud83d"), ("texts", ("fine", "\ud83d"))], ids=["text", "texts"]
)
def test_a_lone_surrogate_is_a_clear_error_that_names_the_row(file, monkeypatch, field, value):
    monkeypatch.setattr(tables, "BATCH", 2)
    rows = [_row(0), _row(1), _row(2), dataclasses.replace(_row(3), **{field: value})]
    with pytest.raises(UserError, match=f"Row row 3, field '{field}': the text is not valid Uni"):
        tables.write(file, rows, Row)


def test_a_second_table_in_the_same_place_is_refused(file):
    tables.write(file, [_row(0)], Row)
    with pytest.raises(FileExistsError):
        tables.write(file, [_row(0)], Row)


def test_a_token_id_beyond_32_bits_is_refused(file):
    with pytest.raises(OverflowError):
        tables.write(file, [dataclasses.replace(_row(0), ids=(2**31,))], Row)


def test_a_field_that_cannot_be_stored_is_named(file):
    @dataclasses.dataclass(frozen=True)
    class Odd:
        values: dict

    with pytest.raises(TypeError, match="Odd.values"):
        tables.write(file, [], Odd)
