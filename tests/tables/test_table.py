"""Tables in memory: columns for the bulk, rows for the eye."""

import dataclasses
import pickle

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.tables import columns as kinds
from alol_jax.tables import table as tables
from alol_jax.tables.columns import Ragged, Texts, first_shared, pair_codes
from alol_jax.tables.table import Table, concatenate
from alol_jax.types import Annotated, Scored
from tests.tables.rows import Row, row

ROWS = tuple(map(row, range(30)))


@pytest.fixture(params=[1, 5], ids=["whole", "in chunks"])
def table(request) -> Table[Row]:
    """Thirty rows, in one chunk and in five."""
    size = 30 // request.param
    parts = [Table.of(ROWS[start : start + size], Row) for start in range(0, 30, size)]
    return concatenate(parts)


def test_rows_are_what_was_put_in_with_python_types(table):
    assert table == ROWS and len(table) == 30
    kinds = [type(value) for value in dataclasses.astuple(table[11])]
    assert kinds == [str, int, float, bool, tuple, tuple, tuple, tuple]
    assert {type(v) for v in table[11].shares} == {type(v) for v in table[11].halves} == {float}
    assert {type(v) for v in table[14].ids} == {int} and {type(v) for v in table[11].texts} == {str}


def test_numbers_are_arrays_that_nobody_changes(table):
    np.testing.assert_array_equal(table["share"], [one.share for one in ROWS])
    np.testing.assert_array_equal(table["flag"], [one.flag for one in ROWS])
    assert (table["share"].dtype, table["number"].dtype, table["flag"].dtype) == (
        np.float64,
        np.int64,
        bool,
    )
    with pytest.raises(ValueError, match="read-only"):
        table["share"][0] = 1.0


def test_lists_are_one_flat_array_and_the_length_of_each(table):
    ids = table["ids"]
    assert ids.tolist() == [one.ids for one in ROWS]
    np.testing.assert_array_equal(ids.flat, [i for one in ROWS for i in one.ids])
    np.testing.assert_array_equal(ids.lengths, [len(one.ids) for one in ROWS])
    assert [ids[n].tolist() for n in (0, 4, 13, -1)] == [list(ROWS[n].ids) for n in (0, 4, 13, -1)]
    assert ids.flat.dtype == np.int32 and table["halves"].flat.dtype == np.float32
    with pytest.raises(IndexError):
        ids[30]


def test_texts_are_read_as_a_sequence(table):
    texts = table["text"]
    assert list(texts) == [one.text for one in ROWS] and texts[-1] == ROWS[-1].text
    assert list(texts[3:9]) == [one.text for one in ROWS[3:9]] and list(texts[9:3]) == []
    assert list(texts[20:2:-5]) == [one.text for one in ROWS[20:2:-5]]
    assert table["texts"][7] == ROWS[7].texts
    assert list(table["texts"].flat) == [text for one in ROWS for text in one.texts]


@pytest.mark.parametrize("places", [[], [3], [29, 0, 0, 17, 8], range(29, -1, -1)], ids=str)
def test_rows_are_taken_in_any_order_and_more_than_once(table, places):
    assert table.take(np.array(places, int)) == [ROWS[place] for place in places]


def test_a_place_that_is_not_there_is_refused(table):
    for place in (30, -1):
        with pytest.raises(IndexError, match="of 30 rows"):
            table.take(np.array([place]))


def test_rows_are_chosen_by_a_mask_and_by_slices(table):
    assert table.where(table["flag"]) == [one for one in ROWS if one.flag]
    assert table.where(np.ones(30, bool)) is table
    assert table[4:9] == ROWS[4:9] and table[::-7] == ROWS[::-7] and table[9:4] == ()


def test_columns_are_replaced_and_the_others_shared(table):
    other = table.replace(share=np.arange(30.0), text=["x"] * 30)
    assert other[4] == dataclasses.replace(ROWS[4], share=4.0, text="x") and table == ROWS
    assert other.arrow["ids"] is not None and other["ids"].tolist() == table["ids"].tolist()


def test_equal_texts_have_equal_codes_in_order_of_occurrence():
    texts = Texts.joined([Texts.of(["b", "a", "b"]), Texts.of(["", "a", "c"])])
    assert texts.codes().tolist() == [0, 1, 0, 2, 1, 3]
    assert texts.firsts().tolist() == [0, 1, 3, 5] and list(texts.distinct()) == ["b", "a", "", "c"]
    assert texts.equal("a").tolist() == [False, True, False, False, True, False]
    assert Texts.of([]).codes().tolist() == [] and Texts.of([]).firsts().tolist() == []


def test_texts_are_made_in_bulk():
    assert list(Texts.numbered("row:", 11))[8:] == ["row:9", "row:10", "row:11"]
    assert list(Texts.repeated("x", 3)) == ["x"] * 3 and list(Texts.numbered("a", 0)) == []


def test_the_first_text_that_two_groups_share_is_found():
    groups = [Texts.of(["a", "b", "a"]), Texts.of(["c"]), Texts.of(["d", "c", "b"])]
    assert first_shared(groups) == (2, 1, 1)
    assert first_shared(groups[:2]) is None


def test_lists_of_one_length_are_a_matrix():
    ragged = Ragged.of(np.arange(6.0), np.array([2, 2, 2]))
    assert ragged.matrix.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert Ragged.empty(3, np.float64).matrix.shape == (3, 0)
    with pytest.raises(ValueError, match="lists of 1 to 2 numbers are no matrix"):
        _ = Ragged.of(np.arange(3), np.array([1, 2])).matrix


def test_rows_are_collected_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 7)
    made = Table.of((one for one in ROWS), Row)
    assert made == ROWS and made.arrow["text"].num_chunks == 5


def test_rows_are_iterated_a_chunk_at_a_time(table, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 7)
    monkeypatch.setattr(kinds, "CHUNK", 7)
    assert tuple(table) == ROWS and list(table["text"]) == [one.text for one in ROWS]


def test_a_part_of_a_table_is_sent_to_another_process_alone(table):
    many = concatenate([table] * 100)
    part = pickle.dumps(many[1000:1010])
    assert pickle.loads(part) == many[1000:1010] and len(part) < len(pickle.dumps(many)) / 10


def test_the_row_types_of_a_run_can_be_stored():
    scored = (Scored("a", "p", "r", "s", (), 0.5), Scored("b", "p", "r", "s", (0.25, 0.5), 0.75))
    assert Table.of(scored, Scored) == scored
    table = (Annotated("a", "s", "p", "r", (1, 2), (3,), (-0.5,), 0.5, 0.25, 0.25, True),)
    assert Table.of(table, Annotated) == table


@pytest.mark.parametrize(
    ("field", "value"), [("text", "\ud83d"), ("texts", ("fine", "\ud83d"))], ids=["text", "texts"]
)
def test_a_lone_surrogate_is_a_clear_error_that_names_the_row(monkeypatch, field, value):
    monkeypatch.setattr(tables, "CHUNK", 2)
    rows = [*ROWS[:3], dataclasses.replace(ROWS[3], **{field: value})]
    with pytest.raises(UserError, match=f"Row row 3, field '{field}': the text is not valid Uni"):
        Table.of(rows, Row)


def test_a_token_id_beyond_32_bits_is_refused():
    with pytest.raises(OverflowError):
        Table.of([dataclasses.replace(ROWS[0], ids=(2**31,))], Row)


def test_a_column_that_is_missing_or_of_another_kind_is_named():
    columns = {name: [getattr(one, name) for one in ROWS] for name in vars(ROWS[0])}
    with pytest.raises(TypeError, match="columns of Row differ: flag"):
        Table(Row, {name: values for name, values in columns.items() if name != "flag"})
    with pytest.raises(TypeError, match="a column of large_list<item: double>, expected large_li"):
        Table(Row, columns | {"ids": Ragged.empty(30, np.float64)})


def test_a_field_that_cannot_be_stored_is_named():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        values: dict

    with pytest.raises(TypeError, match="Odd.values"):
        Table.of([], Odd)


def test_the_sums_of_lists_are_those_of_each_list_in_double_precision():
    flat = np.array([1e8, 1.0, 2.0, 0.5], np.float32)
    ragged = Ragged.of(flat, np.array([0, 2, 0, 0, 1, 1, 0]))
    assert ragged.sums().tolist() == [0, 100000001.0, 0, 0, 2.0, 0.5, 0]
    assert ragged.take(np.array([4, 1])).sums().tolist() == [2.0, 100000001.0]
    assert Ragged.empty(2, np.float32).sums().tolist() == [0, 0]


def test_the_code_of_a_pair_is_that_of_no_other_pair():
    one, other = np.divmod(np.arange(12), 4)
    codes = pair_codes(one, other)
    assert len(set(codes.tolist())) == 12
    assert pair_codes(one[::-1], other[::-1]).tolist() == codes[::-1].tolist()
