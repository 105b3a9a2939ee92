"""``config.task.columns``: fields under other names, and rewards that are sums."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from alol_jax.errors import UserError
from tests.tasks.own_data import every, first, load, write

STEER = {"prompt": "question", "response": "answer", "reward": ("helpfulness", "correctness")}
ROWS = [
    {"question": f"q{n}", "answer": f"a{n}", "helpfulness": n, "correctness": 2, "verbosity": 1}
    for n in range(4)
]
KINDS = ("jsonl", "csv", "parquet", "json")


def _file(tmp_path, kind, rows=ROWS):
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [[*rows[0]], *([str(value) for value in row.values()] for row in rows)]
        path.write_text("".join(",".join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_columns_with_other_names_are_read_and_rewards_are_summed(tmp_path, kind):
    splits = load(_file(tmp_path, kind), columns=STEER)
    assert first(splits) == ("q0", ("a0",), (2.0,))
    assert [one.rewards for one in every(splits)] == [(2.0,), (3.0,), (4.0,), (5.0,)]
    assert splits.notes == (
        "Read as a prompt and its responses (prompt, response, reward): 4 rows.",
        "Field 'verbosity' of 4 rows is not read.",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_has_weights(tmp_path, kind):
    weights = {"helpfulness": 0.5, "correctness": -1}
    splits = load(_file(tmp_path, kind), columns=STEER | {"reward": weights})
    assert [one.rewards for one in every(splits)] == [(-2.0,), (-1.5,), (-1.0,), (-0.5,)]


def test_the_same_rows_are_read_row_by_row(tmp_path):
    rows = [*ROWS, ROWS[0] | {"question": "q9", "extra": {"deep": [1]}}]
    rows.append(ROWS[1] | {"question": "r", "extra": "of another type"})
    splits = load(_file(tmp_path, "jsonl", rows), columns=STEER)
    assert [one.rewards for one in every(splits)] == [
        (2.0,),
        (3.0,),
        (4.0,),
        (5.0,),
        (2.0,),
        (3.0,),
    ]
    assert "Field 'extra' of 2 rows is not read." in splits.notes


@pytest.mark.parametrize("kind", KINDS)
def test_the_field_of_that_name_is_then_not_read(tmp_path, kind):
    rows = [row | {"prompt": "the file's"} for row in ROWS]
    splits = load(_file(tmp_path, kind, rows), columns=STEER)
    assert first(splits)[0] == "q0"
    assert "Field 'prompt (not renamed)' of 4 rows is not read." in splits.notes


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_not_there_is_one_line_with_the_near_miss(tmp_path, kind):
    with pytest.raises(UserError, match=r"columns names 'anser', .*: did you mean 'answer'"):
        load(_file(tmp_path, kind), columns=STEER | {"response": "anser"})


def test_a_part_of_a_sum_that_only_some_rows_have_is_one_line(tmp_path):
    rows = [*ROWS, {"question": "x", "answer": "y", "helpfulness": 3}]
    with pytest.raises(UserError, match=r"a\.jsonl, line 5: no field 'reward', but .*line 1 has"):
        load(_file(tmp_path, "jsonl", rows), columns=STEER)


def test_a_part_of_a_sum_that_is_no_number_names_column_and_row(tmp_path):
    rows = [*ROWS, ROWS[0] | {"helpfulness": "high"}]
    for kind, place in (("jsonl", "line 5"), ("csv", "row 1")):
        said = rf"{place}, field 'helpfulness': expected a number, got str"
        with pytest.raises(UserError, match=said):
            load(_file(tmp_path, kind, rows), columns=STEER)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": "question"}, "task.columns: no form has a field 'promt': did you mean 'prompt'"),
        ({"prompt": 3}, "task.columns: 'prompt' is 3: expected the name of a column, several"),
        ({"reward": ()}, "task.columns: 'reward' is .*: expected the name of a column, several"),
        ({"reward": {"a": "b"}}, "task.columns: 'reward' is .*: expected the name of a column"),
        ({"prompt": ("question", "answer")}, "field 'question': expected a number, got str 'q0'"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        load(_file(tmp_path, "jsonl"), columns=STEER | columns)
