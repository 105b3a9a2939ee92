"""Every line of docs/data.md is read as the page says."""

import gzip
import json
import re
import shlex
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from absl import flags
from absl.testing import flagsaver

import alol_jax.main  # noqa: F401  defines the flags
from alol_jax.runs.command_line import parse
from alol_jax.tasks import own
from alol_jax.tasks.forms import FORMS
from alol_jax.tasks.registry import get_task
from alol_jax.tasks.turns import prompt_of
from alol_jax.text.prompts import encoder_of, in_chat
from alol_jax.text.tokenizer_files import byte_level
from alol_jax.types import Turn, is_chat
from tests.tasks.own_data import every

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and "--config" in line]
LINES = [[cell.strip() for cell in line[1:-1].split("|")] for line in ROWS]
FORM_LINES = [cells for cells in LINES if len(cells) == 4]
SOURCE_LINES = [cells for cells in LINES if len(cells) == 3]

reads_a_file = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def _code(cell):
    return re.fullmatch("`(.*)`", cell)[1]


def _options(flags_of_a_line, monkeypatch):
    """``config.task`` of a line: its flags are parsed as the program does."""
    held_out = ["--config.task.validation=1", "--config.task.test=1"]
    config = f"--config={ROOT}/configs/own.py"
    words = ["alol_jax.main", config, *held_out, *shlex.split(flags_of_a_line)]
    monkeypatch.setattr(sys, "argv", words)
    with flagsaver.flagsaver():
        parse(words)
        return flags.FLAGS.config.task


def _load(flags_of_a_line, monkeypatch):
    """The splits of a line."""
    return own.load(_options(flags_of_a_line, monkeypatch))


@reads_a_file
@pytest.mark.parametrize("cells", FORM_LINES, ids=lambda cells: cells[1][:60])
def test_a_row_of_each_form_is_read(cells, tmp_path, monkeypatch):
    row, flags_of_it = _code(cells[1]), _code(cells[-1])
    rows = [row.replace("egg", f"egg {n}") for n in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    splits = _load(flags_of_it, monkeypatch)
    assert len(every(splits)) == 3 and splits.notes[0].endswith(": 3 rows.")
    for example in every(splits):
        assert "egg" in example.prompt and example.responses[0] == "Boil it."


def test_the_page_has_a_row_of_every_form():
    said = [json.loads(_code(cells[1])) for cells in FORM_LINES]
    shown = {name for name, form in FORMS.items() for row in said if _has(form, row)}
    assert shown == FORMS.keys() and len(FORM_LINES) >= 16


def _has(form, row):
    return all(any(one in row for one in field.split("|")) for field in form.needs)


def _write(path, rows):
    path.parent.mkdir(exist_ok=True)
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        cells = [rows[0], *(row.values() for row in rows)]
        path.write_text("\n".join(";".join(map(str, row)) for row in cells))
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        pa.feather.write_feather(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(lines)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


@reads_a_file
@pytest.mark.parametrize("cells", SOURCE_LINES, ids=lambda cells: cells[0])
def test_a_source_of_each_kind_is_read(cells, tmp_path, monkeypatch):
    names = re.findall("`([^`]*)`", cells[1])
    for name in names:
        rows = [{"prompt": f"{name} {n}", "response": f"r{n}", "reward": n} for n in range(3)]
        _write(tmp_path / name, rows)
    monkeypatch.chdir(tmp_path)
    splits = _load(_code(cells[-1]), monkeypatch)
    once = [one for one in every(splits) if "(time" not in one.id]
    assert len(once) == 3 * len(names) - (":0.67=" in cells[-1])
    assert (len(once) < len(every(splits))) == (":2.5=" in cells[-1])
    if "first" in cells[-1]:
        assert {one.source for one in every(splits)} == {"first", "second"}


TEMPLATES = re.findall(r"^\| `(\S*--config.*?)` \| `(.*)` \|$", PAGE, re.MULTILINE)
TEMPLATES = [(words, text) for words, text in TEMPLATES if ".template=" in words]


@reads_a_file
@pytest.mark.parametrize(("flags_of_it", "read"), TEMPLATES)
def test_a_template_gives_what_the_page_shows(flags_of_it, read, monkeypatch):
    task = get_task(_options(flags_of_it, monkeypatch))
    tokenizer = in_chat(byte_level()) if is_chat(task.template) else byte_level()
    prompt = prompt_of("a row", (Turn("system", "Be brief."), Turn("user", "An egg?")))
    (ids,) = encoder_of(tokenizer, task, task.conversation)([prompt], limit=999)[0]
    assert ids.tolist() == tokenizer.encode(read.replace("\\|", "|").replace("\\n", "\n"))


def test_the_page_shows_three_templates():
    assert len(TEMPLATES) == 3


def test_the_page_shows_twelve_sources():
    assert len(SOURCE_LINES) == 12
