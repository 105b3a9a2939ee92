"""Rows that cannot be read: the first stops the run, or they are left out and counted."""

import json

import pytest

from alol_jax.errors import UserError
from tests.tasks.own_data import every, load, write

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
GOOD = [PAIR | {"prompt": f"p{n}"} for n in range(20)]


def test_the_first_bad_row_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="line 3, field 'chosen': the response is empty"):
        load(write(tmp_path / "a.jsonl", [*GOOD[:2], PAIR | {"chosen": ""}, *GOOD[2:]]))


def test_bad_rows_are_dropped_and_counted_by_reason_with_three_places(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in GOOD]
    bad = [PAIR | {"chosen": ""}, PAIR | {"rejected": 3}, {"prompt": "p", "completion": "c"}]
    lines[3:3] = [json.dumps(row) for row in bad]
    lines[10:10] = ['{"prompt": "cut', *[json.dumps(bad[0])] * 4]
    path.write_text("\n".join(lines))
    splits = load(path, bad_rows="drop", bad_share=0.5)
    assert [one.prompt for one in every(splits)] == sorted(row["prompt"] for row in GOOD)
    read, unscored, *dropped = splits.notes
    assert read.endswith(": 20 rows.") and unscored.endswith(": 20.")
    empty, *others = dropped
    places = "; ".join(f"{path}, line {line}" for line in (4, 12, 13))
    assert empty == f"Dropped rows: field 'chosen': the response is empty (5: {places}; …)."
    assert len(others) == 3
    assert any("not valid JSON" in note and f"(1: {path}, line 11)" in note for note in others)
    assert any("reads as a prompt and a completion" in note for note in others)


def test_without_bad_rows_nothing_is_said(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD)
    assert load(path, bad_rows="drop").notes == load(path).notes


def test_a_row_without_a_score_among_others_is_a_bad_row(tmp_path):
    rows = [{"prompt": f"p{n}", "completion": "c", "score": 1} for n in range(9)]
    path = write(tmp_path / "a.jsonl", [*rows, {"prompt": "q", "completion": "c"}])
    splits = load(path, bad_rows="drop", bad_share=0.1)
    assert len(every(splits)) == 9 and "no field 'reward'" in splits.notes[-1]


def test_more_bad_rows_than_allowed_are_one_line_with_the_reasons(tmp_path):
    path = write(tmp_path / "a.jsonl", [*GOOD[:18], *[PAIR | {"chosen": ""}] * 2])
    with pytest.raises(
        UserError, match="2 of 20 rows cannot be read, more than task.bad_share=0.05"
    ) as caught:
        load(path, bad_rows="drop")
    assert "the response is empty (2: " in str(caught.value) and "\n" not in str(caught.value)
    assert len(every(load(path, bad_rows="drop", bad_share=0.1))) == 18


def test_the_share_is_of_all_files_of_a_split(tmp_path):
    for name, rows in (("a", GOOD[:10]), ("b", [PAIR | {"chosen": ""}]), ("c", GOOD[10:])):
        write(tmp_path / f"data/{name}.jsonl", rows)
    assert len(every(load(tmp_path / "data", bad_rows="drop"))) == 20


def test_a_split_of_bad_rows_alone_is_one_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAIR | {"chosen": ""}] * 3)
    with pytest.raises(UserError, match="task.train_file: 3 of 3 rows cannot be read, none stays"):
        load(path, bad_rows="drop", bad_share=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bad_rows": "skip"}, "task.bad_rows='skip' is unknown: expected one of stop, drop"),
        ({"bad_rows": "drop", "bad_share": 1.5}, "task.bad_share=1.5 must be a share from 0 to 1"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "a.jsonl", GOOD), **changes)
