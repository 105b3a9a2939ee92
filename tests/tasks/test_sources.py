"""Sources: every row with its place, every fault with its place."""

import gzip
import json
import sys

import pytest

from alol_jax.errors import UserError
from alol_jax.tasks import fields, sources


def _write(path, *lines: str):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_json_lines_come_with_their_line_numbers(tmp_path):
    path = _write(tmp_path / "a.jsonl", '{"a": 1}', "", '{"a": "ü"}')
    assert list(sources.read_json_lines(path)) == [(1, {"a": 1}), (3, {"a": "ü"})]


def test_json_lines_may_be_gzipped(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}'))
    assert [row["a"] for _, row in sources.read_file(path)] == [1, 2]


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(sources.read_json_lines(path)) == [(1, {"a": 1})]


def test_json_lines_do_not_import_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import would raise
    path = _write(tmp_path / "a.jsonl", '{"a": 1}')
    assert list(sources.read_rows(str(path), "train")) == [(f"{path}, line 1", {"a": 1})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "line 2: not valid JSON: Expecting"),
        (b"[1, 2]", "line 2: expected a JSON object per line, got list"),
        (b'{"a": "\xff"}', "line 2: not valid JSON: 'utf-8' codec"),
        (b"[" * 100_000, "line 2: not valid JSON: "),
        (b'{"a": ' + b"1" * 5000 + b"}", "line 2: not valid JSON: Exceeds"),
    ],
)
def test_a_malformed_line_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"a\.jsonl, {message}") as caught:
        list(sources.read_json_lines(path))
    assert "\n" not in str(caught.value)


def test_a_broken_gzip_file_is_a_clear_error(tmp_path):
    whole = gzip.compress(b"".join(b'{"a": %d}\n' % n for n in range(9999)))
    for content in (b"no gzip", whole[: len(whole) // 2]):
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.jsonl\.gz.*cannot be read"):
            list(sources.read_json_lines(path))


def test_a_missing_file_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        list(sources.read_rows(str(tmp_path / "nowhere.jsonl"), "train"))
    with pytest.raises(UserError, match=r"nowhere\.jsonl: cannot be read \(No such file"):
        list(sources.read_json_lines(tmp_path / "nowhere.jsonl"))


def test_a_file_of_an_unknown_kind_names_the_known_ones(tmp_path):
    path = _write(tmp_path / "a.txt", "hello")
    with pytest.raises(UserError, match=r"a\.txt: expected a file name ending in \.jsonl"):
        list(sources.read_file(path))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet"])
def test_tables_come_with_their_row_numbers(tmp_path, name):
    path = tmp_path / name
    if name == "a.csv":
        _write(path, "prompt,reward", '"hi, you",0.5', "bye,")
    elif name == "a.csv.gz":
        path.write_bytes(gzip.compress(b'prompt,reward\n"hi, you",0.5\nbye,\n'))
    else:
        datasets = pytest.importorskip("datasets")
        rows = {"prompt": ["hi, you", "bye"], "reward": [0.5, None]}
        datasets.Dataset.from_dict(rows).to_parquet(path)
    assert list(sources.read_file(path)) == [
        (f"{path}, row 1", {"prompt": "hi, you", "reward": 0.5}),
        (f"{path}, row 2", {"prompt": "bye", "reward": None}),
    ]


def test_a_broken_parquet_file_is_a_clear_error(tmp_path):
    path = _write(tmp_path / "a.parquet", "hello")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as parquet") as caught:
        list(sources.read_file(path))
    assert "\n" not in str(caught.value)


def test_a_file_has_only_the_split_train(tmp_path):
    path = _write(tmp_path / "a.jsonl", "{}")
    with pytest.raises(UserError, match="only the split 'train', not 'test'"):
        list(sources.read_rows(str(path), "test"))


def test_a_dataset_that_cannot_be_fetched_is_a_clear_error():
    with pytest.raises(UserError, match="no-such/dataset: cannot load 'train'") as caught:
        list(sources.read_rows("no-such/dataset", "train"))
    assert "\n" not in str(caught.value)


def test_a_hub_dataset_is_named_with_folder_and_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, *, data_dir, split):
        asked.append((name, data_dir, split))
        return datasets.Dataset.from_list([{"a": 1}, {"a": 2}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, revision: ["default"])
    assert list(sources.read_listed("who/what:some-folder:test")) == [
        ("who/what:some-folder [test], row 1", {"a": 1}),
        ("who/what:some-folder [test], row 2", {"a": 2}),
    ]
    list(sources.read_listed("who/what:train"))
    assert asked == [("who/what", "some-folder", "test"), ("who/what", None, "train")]


def test_a_listed_file_is_read_whatever_colons_it_has(tmp_path):
    path = _write(tmp_path / "a:b.jsonl", '{"a": 1}')
    assert list(sources.read_listed(str(path))) == [(f"{path}, line 1", {"a": 1})]


@pytest.mark.parametrize("name", ["who/what", "rows.txt", ":train", "who/what:", ""])
def test_a_text_that_names_neither_file_nor_hub_split_is_a_clear_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"neither a file .* nor a split on the Hugging Face hub"):
        list(sources.read_listed(name))


def test_a_hub_split_that_cannot_be_fetched_says_what_works_offline():
    with pytest.raises(UserError, match="no-such/dataset:folder: cannot load .* name local files"):
        list(sources.read_listed("no-such/dataset:folder:train"))


def test_a_field_is_returned_in_its_kind():
    row = {"text": "hi", "whole": 3, "list": [1, 2.5], "map": {}}
    assert fields.field("x", row, "text", str) == "hi"
    assert fields.field("x", row, "whole", int) == 3
    number = fields.field("x", row, "whole", float)
    assert number == 3.0 and isinstance(number, float)
    assert fields.elements("x", row, "list", float) == (1.0, 2.5)
    assert fields.field("x", row, "map", dict) == {}


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (3, str, "a.jsonl, line 3, field 'f': expected text, got int 3"),
        ("3", float, "a.jsonl, line 3, field 'f': expected a number, got str '3'"),
        (True, float, "expected a number, got bool True"),
        (True, int, "expected a whole number, got bool True"),
        (1.5, int, "expected a whole number, got float 1.5"),
        (float("nan"), float, "expected a finite number, got nan"),
        (float("inf"), float, "expected a finite number, got inf"),
        (10**400, float, "expected a finite number, got inf"),
        ("hi", list, "expected a list, got str 'hi'"),
        (None, str, "line 3: no field 'f'; expected text \\(found: g\\)"),
        ("\ud83d", str, "not valid Unicode"),
        ("x" * 999, list, "got str 'x{56}\\.\\.\\.$"),
    ],
)
def test_a_field_of_another_kind_names_place_field_expected_and_got(value, kind, message):
    with pytest.raises(UserError, match=message):
        fields.field("a.jsonl, line 3", {"f": value, "g": 1}, "f", kind)


def test_an_element_of_another_kind_is_counted_from_one():
    with pytest.raises(UserError, match="field 'f', element 2: expected text, got int"):
        fields.elements("x", json.loads('{"f": ["a", 1]}'), "f", str)
