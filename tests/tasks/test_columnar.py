"""Reading by columns: the same examples as row by row, and never a row that would be refused."""

import collections
import gzip
import json
import random

import datasets
import pytest
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.tables.table import Table
from alol_jax.tasks import columnar, forms, own, reading
from alol_jax.tasks.bad_rows import BadRows
from alol_jax.tasks.forms import FORMS
from alol_jax.tasks.listed import Opened, Source
from alol_jax.tasks.renaming import Renaming
from alol_jax.types import Example

TEXTS = (
    "a",
    "déjà vu",
    "日本 🍋",
    '"quoted", 1,2',
    "two\nlines",
    " spaced ",
    "\u2028\x00",
    "2020-01-01",
)
NUMBERS = (0, 1, -2, 0.1, 1e-320, 12345678901234567890, 2.5)


def _random_rows(count: int, fields: str) -> list[dict]:
    """Rows with these fields, of texts and numbers that a parser could take for others."""
    draw = random.Random(fields)
    text = lambda: draw.choice(TEXTS)  # noqa: E731
    number = lambda: draw.choice(NUMBERS)  # noqa: E731
    rows = []
    for n in range(count):
        many = draw.randint(1, 3)
        made = {
            "prompt": text() + str(n % 40),
            "response": text(),
            "responses": [text() for _ in range(many)],
            "reward": number(),
            "rewards": [number() for _ in range(many)],
            "source": text(),
            "id": text() + str(n),
            "number": n,
            "other": {"deep": [n]},
        }
        chosen = {"id" if name == "number" else name: made[name] for name in fields.split()}
        rows.append(chosen)
    return rows


def _by_rows(path) -> Table[Example]:
    opened, counts = Opened(Source("data", str(path)), forms.SCORES), collections.Counter()
    rows = reading._by_rows(
        opened, "train_file:", AS_IT_IS, FORM, BadRows("stop", 0.0), counts, counts
    )
    return Table.of(rows, Example)


def _by_columns(path) -> Table[Example]:
    opened = Opened(Source("data", str(path)), forms.SCORES)
    _, _, first = reading._form_of(opened, AS_IT_IS)
    return reading._by_columns(opened, "train_file:", AS_IT_IS, FORMS[FORM], first)[1]


FORM, AS_IT_IS = "a prompt and its responses", Renaming({})
FIELDS = (
    "prompt response",
    "prompt response reward",
    "prompt responses",
    "prompt responses rewards source",
    "prompt response reward source id other",
    "prompt response reward number",
)


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_give_the_same_examples_as_row_by_row(tmp_path, monkeypatch, fields, suffix):
    monkeypatch.setattr(columnar, "BLOCK", 4096)  # several blocks
    lines = "\n".join(json.dumps(row) for row in _random_rows(300, fields)) + "\n\n"
    path = tmp_path / f"data{suffix}"
    opened = gzip.open if suffix.endswith("gz") else open
    with opened(path, "wb") as file:
        file.write(("\ufeff" + lines).encode())
    assert _by_columns(path) == _by_rows(path)


@pytest.mark.parametrize("fields", [f for f in FIELDS if "other" not in f])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_other_files_give_the_same_examples_as_row_by_row(tmp_path, fields, form):
    if form == "csv" and "responses" in fields:
        pytest.skip("a cell holds no list")
    rows = [
        {k: v if k not in ("reward", "rewards") else _float(v) for k, v in row.items()}
        for row in _random_rows(300, fields)
    ]
    data = datasets.Dataset.from_list(rows)
    getattr(data, f"to_{form}")(tmp_path / f"data.{form}")
    path = tmp_path / f"data.{form}"
    assert _by_columns(path) == _by_rows(path)


def _float(value):
    return [float(v) for v in value] if isinstance(value, list) else float(value)


def test_missing_ids_and_sources_get_the_usual_ones(tmp_path):
    rows = _random_rows(50, "prompt response source id")
    for row in rows[::3]:
        del row["id"]
    for row in rows[::4]:
        row["source"] = None
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert _by_columns(path) == _by_rows(path)
    assert _by_columns(path)[3].id == "train_file:4" and _by_columns(path)[4].source == "data"


def _load(path):
    options = {"name": "own", "train_file": str(path), "validation_file": "", "test_file": ""}
    options |= {"validation": 1, "test": 1, "limit": 0}
    return own.load(ConfigDict(options | {"columns": {}, "bad_rows": "stop", "bad_share": 0.0}))


GOOD = '{"prompt": "p%d", "response": "r", "reward": 1}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD % 7 + GOOD % 8, "line 3: not valid JSON: Extra data"),
        ('{"prompt": "p",\n"response": "r", "reward": 1}', "line 3: not valid JSON"),
        (
            '{"prompt": "p", "response": "r", "reward": NaN}',
            "line 3, field 'reward': expected a fin",
        ),
        (
            '{"prompt": "p", "response": "r", "reward": 1e999}',
            "line 3, field 'reward': expected a fi",
        ),
        (
            '{"prompt": "p", "response": "r", "reward": true}',
            "line 3, field 'reward': expected a nu",
        ),
        (
            '{"prompt": "p", "response": "r", "reward": "1"}',
            "line 3, field 'reward': expected a numb",
        ),
        ('{"prompt": "p", "response": "r"}', "line 3: no field 'reward', but .*line 1 has one"),
        ('{"prompt": "p", "response": 3, "reward": 1}', "line 3, field 'response': expected text"),
        (
            '{"prompt": " ", "response": "r", "reward": 1}',
            "line 3, field 'prompt': the prompt is em",
        ),
        (
            '{"prompt": "p", "response": "\\ud83d", "reward": 1}',
            "line 3, field 'response': the text",
        ),
        (
            '{"prompt": "p", "response": "r", "rewards": []}',
            "line 3, field 'rewards': the list is e",
        ),
        (
            '{"prompt": "p", "response": "r", "rewards": [1, 2]}',
            "line 3: 2 rewards for 1 responses",
        ),
        ('["p", "r"]', "line 3: expected a JSON object per line, got list"),
        (
            '{"prompt": "p", "response": "r", "id": 1.5, "reward": 1}',
            "line 3, field 'id': expected te",
        ),
    ],
)
def test_whatever_is_wrong_with_a_row_is_said_as_row_by_row(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([GOOD % 1, GOOD % 2, line, GOOD % 4]))
    with pytest.raises(UserError, match=message):
        _load(path)


def test_bytes_that_are_no_utf8_name_their_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes((GOOD % 1).encode() + b"\n" + (GOOD % 2).encode().replace(b"r", b"\xff", 1))
    with pytest.raises(UserError, match="line 2: not valid JSON: 'utf-8' codec can't decode"):
        _load(path)


def test_a_column_whose_type_changes_late_names_the_line(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "BLOCK", 4096)
    lines = [GOOD % n for n in range(20_000)]
    lines[17_000] = '{"prompt": "p", "response": "r", "reward": "high"}'
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"line 17001, field 'reward': expected a number, got str"):
        _load(tmp_path / "data.jsonl")


def test_rows_of_two_forms_are_read_row_by_row(tmp_path):
    rows = ['{"prompt": "a", "response": "r"}', '{"prompt": "b", "responses": ["r", "s"]}']
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*rows, '{"prompt": "c", "responses": ["t"], "id": 3}']))
    with pytest.raises(columnar.Irregular):
        _by_columns(path)
    assert [example.responses for example in _by_rows(path)] == [("r",), ("r", "s"), ("t",)]
    splits = _load(path)
    assert len(splits.train) == len(splits.validation) == len(splits.test) == 1


def test_a_row_of_fifteen_megabytes_is_read(tmp_path):
    path = tmp_path / "data.jsonl"
    long = {"prompt": "long", "response": "ü" * 7_500_000, "reward": 1}
    path.write_text("\n".join([GOOD % 1, json.dumps(long, ensure_ascii=False), GOOD % 2, GOOD % 3]))
    splits = _load(path)
    (found,) = (
        e for s in (splits.train, splits.validation, splits.test) for e in s if e.prompt == "long"
    )
    assert found.responses == (long["response"],)
