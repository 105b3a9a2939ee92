"""What a config's data path may name, and what is said where it names nothing."""

import gzip
import json
import shutil

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from alol_jax.errors import UserError
from alol_jax.paths import with_local_copies
from alol_jax.tasks import own
from tests.tasks.own_data import every, first, load, options, write

ROWS = [{"prompt": f"p{n}", "response": f"r{n}, or so", "reward": n / 4} for n in range(4)]
EXPECTED = [(f"p{n}", (f"r{n}, or so",), (n / 4,)) for n in range(4)]
READ = "Read as a prompt and its responses (prompt, response, reward): 4 rows."


def _lines():
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _csv(delimiter):
    lines = [["prompt", "response", "reward"], *([str(v) for v in row.values()] for row in ROWS)]
    quoted = ([f'"{cell}"' if delimiter in cell else cell for cell in line] for line in lines)
    return "".join(delimiter.join(line) + "\n" for line in quoted).encode()


def _zst(content):
    with pa.BufferOutputStream() as sink:
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()


def _stream(path):
    with pa.OSFile(str(path), "wb") as sink:
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)


FILES = {
    "a.jsonl": lambda path: path.write_bytes(_lines()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(_lines())),
    "a.jsonl.zst": lambda path: path.write_bytes(_zst(_lines())),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "a.json.zst": lambda path: path.write_bytes(_zst(json.dumps(ROWS).encode())),
    "a.csv": lambda path: path.write_bytes(_csv(",")),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(_csv(","))),
    "a.csv.zst": lambda path: path.write_bytes(_zst(_csv(","))),
    "a.parquet": lambda path: pa.parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "a.arrow": _stream,
    "b.arrow": lambda path: pa.feather.write_feather(pa.Table.from_pylist(ROWS), path),
}


def _examples(splits):
    return [(one.prompt, one.responses, one.rewards) for one in every(splits)]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_examples(tmp_path, name):
    FILES[name](tmp_path / name)
    splits = load(tmp_path / name)
    assert _examples(splits) == EXPECTED and splits.notes == (READ,)
    assert {one.source for one in every(splits)} == {name[0]}


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_of_a_csv_file_is_found_and_said(tmp_path, name, delimiter):
    path = tmp_path / name
    path.write_bytes(_csv(delimiter))
    splits = load(path)
    assert _examples(splits) == EXPECTED
    assert splits.notes == (READ, f"{path}: columns separated by {delimiter!r}.")


def test_commas_and_semicolons_inside_texts_are_no_delimiters(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f'"say a; b; c{n}","one; two; three",{n}\n' for n in range(5)]
    path.write_text("".join(["prompt,response,reward\n", *rows]))
    assert first(load(path)) == ("say a; b; c0", ("one; two; three",), (0.0,))


def test_texts_that_look_like_numbers_or_gaps_stay_texts_in_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,response,reward\n1,NA,0.5\n2,None,1\n3,2020,1\n")
    assert [one.responses for one in every(load(path))] == [("NA",), ("None",), ("2020",)]


def test_a_csv_row_with_other_columns_names_its_place(tmp_path):
    path = tmp_path / "a.csv"
    lines = ["prompt,response,reward", *(f"p{n},r,1" for n in range(30))]
    lines[3:3] = ["x,y"]
    path.write_text("\n".join([*lines, "x,y,z,1"]))
    with pytest.raises(UserError, match=r"a\.csv, row 3: 2 columns, expected 3"):
        load(path)
    splits = load(path, bad_rows="drop", bad_share=0.1)
    assert len(every(splits)) == 30
    assert {one.id for one in every(splits)} >= {"train_file:1", "train_file:2", "train_file:4"}
    assert splits.notes[1:] == (
        f"Dropped rows: 2 columns, expected 3 (1: {path}, row 3).",
        f"Dropped rows: 4 columns, expected 3 (1: {path}, row 32).",
    )


def test_two_csv_columns_of_one_name_are_one_line(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response,prompt\na,b,c\n")
    with pytest.raises(UserError, match=r"a\.csv: two columns are called 'prompt'"):
        load(tmp_path / "a.csv")


def test_a_folder_a_glob_and_a_list_are_read_as_one(tmp_path):
    for name, rows in (("a", ROWS[:2]), ("b", ROWS[2:3]), ("sub/c", ROWS[3:])):
        write(tmp_path / f"data/{name}.jsonl", rows)
    (tmp_path / "data/README.md").write_text("no data")
    (tmp_path / "data/dataset_info.json").write_text("{}")
    (tmp_path / "data/state.json").write_text("{}")
    a, b, c = (f"{tmp_path}/data/{name}.jsonl" for name in ("a", "b", "sub/c"))
    for text in (tmp_path / "data", f"{tmp_path}/data/**/*.jsonl", f"{a},{b}, {c}"):
        splits = load(text)
        assert _examples(splits) == EXPECTED
        assert splits.notes == (READ, f"task.train_file: 3 read: {a}, {b}, {c}.")
        assert [one.source for one in every(splits)] == ["a", "a", "b", "c"]
        assert len({one.id for one in every(splits)}) == 4
    assert own.files(options(tmp_path / "data")) == own.files(options(f"{a},{b},{c}"))


def test_a_name_before_a_file_is_the_source_of_its_rows(tmp_path):
    one = write(tmp_path / "train.jsonl", ROWS[:2])
    other = write(tmp_path / "b/train.jsonl", ROWS[2:])
    splits = load(f"helpful={one},harmless={other}")
    assert [e.source for e in every(splits)] == ["helpful", "helpful", "harmless", "harmless"]


def test_a_share_of_a_source_is_taken_the_same_in_every_run(tmp_path):
    rows = [{"prompt": f"p{n}", "response": "r"} for n in range(40)]
    one = write(tmp_path / "a.jsonl", rows[:20])
    other = write(tmp_path / "b.jsonl", rows[20:])
    splits = load(f"big:0.5={one},all={other}")
    sources = [example.source for example in every(splits)]
    assert (sources.count("big"), sources.count("all")) == (10, 20)
    assert f"{one}: 10 of 20 rows taken, its share." in splits.notes
    write(tmp_path / "a.jsonl", rows[19::-1])
    again = load(f"big:0.5={one},all={other}")
    assert [e.prompt for e in every(again)] == [e.prompt for e in every(splits)]
    more = load(f"big:0.75={one},all={other}")
    assert {e.prompt for e in every(splits)} < {e.prompt for e in every(more)}


@pytest.mark.parametrize("weight", ["0", "100.5", "1.2.3"])
def test_a_weight_that_is_none_is_one_line(tmp_path, weight):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError, match=f"a:{weight}=.*: {weight} is no weight, above 0 and up to"):
        load(f"a:{weight}={path}")


def test_a_file_with_a_comma_in_its_name_is_one_file(tmp_path):
    assert _examples(load(write(tmp_path / "a=1,b.jsonl", ROWS))) == EXPECTED


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data/a.jsonl", ROWS)
    assert _examples(load("~/data/a.jsonl")) == EXPECTED
    assert _examples(load("mine=~/data/*.jsonl")) == EXPECTED
    local = with_local_copies(options("x", files=("~/data", "a~b"), template="~ {prompt}"))
    assert local.files == (f"{tmp_path}/data", "a~b") and local.template == "~ {prompt}"


def test_a_data_set_that_the_datasets_library_saved_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert _examples(load(tmp_path / "saved")) == EXPECTED


def test_an_empty_folder_and_a_glob_of_nothing_are_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/notes.txt").write_text("hi")
    for text in (tmp_path / "data", f"{tmp_path}/data/*.jsonl"):
        with pytest.raises(UserError, match="task.train_file: .*data.*: no data files there, endi"):
            load(text)


def test_one_damaged_file_among_twenty_is_named(tmp_path):
    for n in range(20):
        rows = pa.Table.from_pylist([{"prompt": f"p{n}", "response": "r"}])
        pa.parquet.write_table(rows, tmp_path / f"part-{n:02}.parquet")
    damaged = tmp_path / "part-13.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"part-13\.parquet: cannot be read as parquet") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "a.arrow", "a.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_called_that(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(UserError, match=rf"{name}: a Git LFS pointer, .*: run `git lfs pull`"):
        load(tmp_path / name)


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set of two configs; what is asked for is listed."""
    asked, data = [], datasets.Dataset.from_list(ROWS)

    def load_dataset(path, **place):
        asked.append((path, {key: value for key, value in place.items() if value}))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, revision: ["en", "de"])
    return asked


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("who/what", {"split": "train"}),
        ("who/what:en", {"name": "en", "split": "train"}),
        ("who/what:test", {"split": "test"}),
        ("who/what:de:test", {"name": "de", "split": "test"}),
        ("who/what:folder:test", {"data_dir": "folder", "split": "test"}),
        ("who/what@v2", {"revision": "v2", "split": "train"}),
        ("who/what:en:test@0a1b", {"name": "en", "split": "test", "revision": "0a1b"}),
    ],
)
def test_a_hub_data_set_is_named_with_config_split_and_revision(hub, name, place, tmp_path):
    splits = load(name)
    assert hub == [("who/what", place)] and _examples(splits) == EXPECTED
    assert splits.notes == (READ,)
    assert {one.source for one in every(splits)} == {"what"}
    assert own.files(options(name)) == ()


def test_a_hub_name_without_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, asked in (("no-such/dataset", "train"), ("no-such/dataset:en:test@v1", "test")):
        with pytest.raises(UserError, match=f"{name}: cannot load '{asked}'.* local files"):
            load(name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{\n "data": [{"prompt": "a"}]\n}', "line 1: not valid JSON: Expecting"),
        ("a.jsonl", b"prompt,response\na,b\n", "line 1: not valid JSON: Expecting"),
        ("a.jsonl", b"", "the file has no rows"),
        ("a.csv", b"", "cannot be read as csv \\(Empty CSV file"),
        ("a.csv", b"prompt,response\n", "the file has no rows"),
        ("a.csv", b"prompt,response\n\xff,a\n", "cannot be read as csv \\('utf-8' codec"),
        ("a.jsonl.zst", b"no zst", "cannot be read"),
    ],
)
@pytest.mark.parametrize("mode", ["stop", "drop"])
def test_a_file_that_is_not_what_its_name_says_is_one_line(tmp_path, name, content, message, mode):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{message}") as caught:
        load(tmp_path / name, bad_rows=mode)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_gone_between_naming_and_reading_is_one_line(tmp_path):
    path = write(tmp_path / "data/a.jsonl", ROWS)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(UserError, match=r"a\.jsonl: no such file"):
        load(path)
