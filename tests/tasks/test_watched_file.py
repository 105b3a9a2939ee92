"""How much of a big data file has been read is shown while it is read; of a small one nothing."""

import gzip
import json
import random
import re
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from alol_jax.errors import UserError
from alol_jax.runs.progress import progress
from alol_jax.tasks import columnar, listed, own, sources, watched_file
from configs import own as own_config

PIECE = 2**11


@pytest.fixture
def big(monkeypatch):
    """Every file counts as a big one."""
    monkeypatch.setattr(watched_file, "BIG", 1)
    monkeypatch.setattr(watched_file, "PIECE", PIECE)
    monkeypatch.setattr(listed, "MANY", 1)


class Seen:
    """Notes the steps of every loop that it is given."""

    def __init__(self):
        self.loops = []

    def __call__(self, items, watch, *, total):
        loop = {"label": watch.label, "total": total, "done": 0}
        self.loops.append(loop)
        for item in items:
            loop["done"] += 1
            yield item


def rows(count=400):
    draw = random.Random(0)  # so that packing does not make it small
    return [
        {"prompt": f"q {n}", "response": f"{draw.getrandbits(200):x}", "reward": n / count}
        for n in range(count)
    ]


def options_for(file):
    options = own_config.get_config().task
    options.update({"train_file": str(file), "validation": 1, "test": 1})
    return options


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def packed(data):
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as file:
        file.write(data)
    return stream.getvalue().to_pybytes()


def written(folder, name, data):
    pack = {".gz": gzip.compress, ".zst": packed}.get(f".{name.rpartition('.')[2]}", bytes)
    (folder / name).write_bytes(pack(data))
    return folder / name


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst"])
def test_the_pieces_of_a_big_file_are_steps_taken_while_it_is_read(name, big, tmp_path):
    seen, file = Seen(), written(tmp_path, name, lines(rows(4000)))
    read = sources.read_json_lines(file, progress=seen)
    next(read)
    (loop,) = seen.loops
    assert loop["label"] == f"reading {name}, MiB"
    assert loop["total"] == -(-file.stat().st_size // PIECE)
    early = loop["done"]
    assert len(list(read)) == 3999
    assert early < loop["total"] == loop["done"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.json", "d.csv"])
def test_the_rows_of_a_watched_file_are_the_same(name, big, tmp_path):
    data = lines(rows())
    if name == "d.json":
        data = json.dumps(rows()).encode()
    if name == "d.csv":
        data = "prompt,response,reward\n" + "".join(
            f"{row['prompt']},{row['response']},{row['reward']}\n" for row in rows()
        )
        data = data.encode()
    file, seen = written(tmp_path, name, data), Seen()
    watched, plain = own.load(options_for(file), seen), own.load(options_for(file))
    assert list(watched.train) == list(plain.train) and len(watched.train) > 300
    assert (f"reading {name}, MiB", True) in {
        (loop["label"], loop["done"] == loop["total"]) for loop in seen.loops
    }


def table_file(folder, form, table):
    """A Parquet file, or an Arrow file of either kind, in several pieces."""
    file = folder / f"d.{form.partition(' ')[0]}"
    if form == "parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=70)
        return file
    make = {"arrow file": pa.ipc.new_file, "arrow stream": pa.ipc.new_stream}[form]
    with make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
    return file


@pytest.mark.parametrize("form", ["parquet", "arrow file", "arrow stream"])
def test_batches_of_rows_are_the_steps_of_a_big_table(form, big, tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "ROWS", 64)
    file, seen = table_file(tmp_path, form, pa.Table.from_pylist(rows())), Seen()
    watched = own.load(options_for(file), seen)
    assert {"label": f"reading {file.name}, 64 rows", "total": 7, "done": 7} in seen.loops
    assert list(watched.train) == list(own.load(options_for(file)).train)


def test_nested_rows_of_a_table_are_steps_of_1024(big, tmp_path):
    answer = {"role": "assistant", "content": "yes"}
    said = [{"messages": [{"role": "user", "content": f"q {n}"}, answer]} for n in range(3000)]
    file = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(said), file)
    seen = Seen()
    assert len(own.load(options_for(file), seen).train) > 2900
    assert [loop for loop in seen.loops if loop["done"] == loop["total"] >= 3]
    columns, *others = seen.loops
    assert columns["label"] == "reading d.parquet, 65536 rows"
    assert {loop["label"] for loop in others} == {"reading d.parquet, 1024 rows"}


def test_of_a_small_file_nothing_is_shown(tmp_path):
    seen = Seen()
    own.load(options_for(written(tmp_path, "d.jsonl", lines(rows()))), seen)
    assert seen.loops == []


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_sees_how_much_has_been_read(terminal, big, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    file = written(tmp_path, "d.jsonl", lines(rows(4000)))
    own.load(options_for(file), progress)
    found = re.search(r"reading d.jsonl, MiB: .*\d+/\d+ \[\d\d:\d\d<", capsys.readouterr().err)
    assert bool(found) == terminal


def test_a_damaged_file_is_one_line_as_before(big, tmp_path):
    whole = gzip.compress(lines(rows(4000)))
    (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="d.jsonl.gz, after line .*: cannot be read"):
        own.load(options_for(tmp_path / "d.jsonl.gz"), Seen())
