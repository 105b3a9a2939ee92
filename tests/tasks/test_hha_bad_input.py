"""hha: every way in which files, rows and options can be wrong is one clear line."""

import json

import pytest

from alol_jax.errors import UserError
from alol_jax.tasks import hha
from tests.tasks.hha_cases import row, task_options, three_splits, transcripts, write


@pytest.fixture
def files(tmp_path):
    return three_splits(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "bad.json: cannot be read"),
        ("[1]", r'bad.json: expected \{"harmless_base.json": \[row numbers\]\}'),
        ('{"harmless_base.json": ["1"]}', "element 1: expected a whole number, got str '1'"),
        ('{"harmless_base.json": 3}', "'harmless_base.json': expected a list"),
        ('{"harmless_base.json": [3]}', "row 3 is not in .*harmless_base.json, .* rows 0 to 2"),
        ('{"harmless_base.json": [-1]}', "row -1 is not in .*harmless_base.json, .* rows 0 to 2"),
        ('{"harmful.json": [1]}', r"names \(harmful.json\) is a file of .* \(harmless_base, help"),
        ("{}", r"none of its names \(none\) is a file"),
    ],
)
def test_a_list_of_bad_rows_that_does_not_fit_is_a_clear_error(files, tmp_path, content, message):
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    _refused(message, **files, bad_test_indices=str(bad))


def test_a_list_of_bad_rows_does_not_fit_transcripts(files, tmp_path):
    files["test_files"] = [write(tmp_path / "x.jsonl", [transcripts()])]
    bad = tmp_path / "bad.json"
    bad.write_text('{"x": [0]}')
    _refused("x.jsonl, line 1: task.bad_test_indices is for published", **files,
             bad_test_indices=str(bad))  # fmt: skip


def _refused(message, train=(), **changes):
    with pytest.raises(UserError, match=message) as caught:
        hha.load(task_options(train, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("malformed", "message"),
    [
        ({"prompt": "a", "response": "b"}, "expected a published row .* fields are: prompt, resp"),
        ({"chosen": "a"}, r"two transcripts \(chosen, rejected\); its fields are: chosen"),
        (row() | {"suffix": "ab"}, "field 'suffix': expected a list"),
        (row() | {"suffix": ["a", 1]}, "field 'suffix', element 2: expected text"),
        (row() | {"suffix": ["a"]}, "2 prefixes for 1 suffixes"),
        (row() | {"suffix": [], "prefix": []}, "0 prefixes for 0 suffixes"),
        (row() | {"prefix": ["a", "b"]}, "field 'prefix', element 1: expected a list"),
        (row() | {"prefix": [["a"], [2]]}, "field 'prefix', element 1: expected text, got int"),
        (row(reward=(1.0,)), "1 rewards for 2 suffixes"),
        (row(reward=(1.0, float("nan"))), "field 'reward', element 2: expected a finite number"),
        (transcripts() | {"chosen": 1}, "field 'chosen': expected text, got int"),
    ],
)
def test_a_malformed_row_names_file_line_and_field(tmp_path, malformed, message):
    said = _refused(message, [write(tmp_path / "t.jsonl", [row(), malformed])])
    assert "t.jsonl, line 2" in said


def test_a_line_that_is_no_json_names_file_and_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row()) + "\n{")
    _refused("t.jsonl, line 2: not valid JSON", [str(path)])


def test_a_file_that_is_absent_names_its_key_and_where_it_comes_from(files, tmp_path):
    gone = str(tmp_path / "helpful_rejection.json")
    _refused(
        "^task.test_files: .*helpful_rejection.json: no such file; the published rows are in PRO's "
        "data.zip .*hh_train_len2, hh_dev, hh_test.*; `python -m alol_jax.prepare --config=…` "
        "brings it$",
        **{**files, "test_files": [*files["test_files"], gone]},
    )
    _refused(f"task.train_files: {tmp_path}: is a folder: name its files", [str(tmp_path)])
    _refused("task.bad_test_indices: .*: no such file.* brings it$", **files, bad_test_indices=gone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(train=()), "task.train_files is empty: name files, like"),
        (dict(train_files="t.json"), r"task.train_files is a text: expected a tuple, \('t.json',"),
        (dict(train=("t.txt",)), "'t.txt' is neither a file .* nor a split on the Hugging Face"),
        (dict(train=("Anthropic/hh-rlhf",)), "hub, like 'Anthropic/hh-rlhf:helpful-base:train'"),
        (dict(validation=-1), "task.validation is -1: expected a number, 0 or more"),
        (dict(limit=-1), "task.limit is -1"),
    ],
)
def test_a_bad_option_is_a_clear_error(files, changes, message):
    _refused(message, **{**files, **changes})


def test_files_without_a_usable_row_are_a_clear_error(tmp_path):
    _refused("t.jsonl: the file has no rows", [write(tmp_path / "t.jsonl", [])])
    train = [write(tmp_path / "t.jsonl", [row(suffix=("Yes:", "No."))])]
    _refused(r"no row is left for training \(.*ends with ':': 1\)", train)
