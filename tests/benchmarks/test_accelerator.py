"""The measurement of an accelerator runs with small models on a CPU, and on a bare machine."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.accelerator.measuring import attempt
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.table import line, markdown
from tests.running import ROOT, environment

BARE = (  # what a machine with jax, flax, optax and orbax lacks
    "ml_collections pyarrow datasets grain tensorflow_datasets array_record gguf sentencepiece"
    " tokenizers transformers torch peft safetensors huggingface_hub tensorboardX vaderSentiment"
    " sklearn profanity_check matplotlib jinja2"
).split()


def measured(tmp_path, *arguments):
    """The rows and the output of a tiny run."""
    file = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", "--tiny", f"--out={file}", *arguments],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(file.read_text()), done.stdout


def check(rows):
    """Every row was measured, and no value was wrong."""
    assert [row for row in rows if "failed" in row] == []
    assert all(row["seconds"] > 0 for row in rows if "seconds" in row)
    assert all("WRONG" not in row.get("note", "") for row in rows)
    assert all(row["error"] < 0.05 for row in rows if "error" in row)


@pytest.mark.slow
def test_all_parts_run_tiny_on_a_cpu(tmp_path):
    found, said = measured(tmp_path, "--seconds=900")
    assert found["about"]["platform"] == "cpu"
    assert all(row["what"] in said for row in found["rows"])
    assert {row["part"] for row in found["rows"]} == PARTS.keys()
    check([row for row in found["rows"] if "left out" not in row.get("failed", "")])


def test_parts_that_do_not_fit_are_not_begun_and_say_so(tmp_path):
    found, _ = measured(tmp_path, "--seconds=5")
    assert len(found["rows"]) == len(PARTS)
    assert all("not begun" in row["failed"] for row in found["rows"])
    (row,) = measured(tmp_path, "--seconds=5", "--only=nf4")[0]["rows"]
    assert row["part"] == "nf4" and "not begun" in row["failed"]


def test_it_needs_nothing_that_a_bare_machine_lacks(tmp_path):
    block = f"import sys; sys.modules.update(dict.fromkeys({BARE!r}))"
    subprocess.run(
        [sys.executable, "-c", f"{block}; import benchmarks.accelerator.__main__"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=True,
    )


def test_what_fails_is_a_row_with_its_reason_and_the_next_goes_on():
    rows = []

    def fail():
        raise ValueError("too large\nand more")

    attempt(rows.append, "first", fail)
    attempt(rows.append, "second", lambda: {"seconds": 0.0125, "mfu": 0.5})
    assert rows[0] == {"what": "first", "failed": "ValueError: too large"}
    assert line(rows[0]) == "first: ValueError: too large"
    assert line(rows[1]) == "second: 12.5 ms; MFU 50.0%"
    table = markdown({"device": "a device", "jax": "1"}, rows).splitlines()
    assert table[0] == "**a device** (jax 1)"
    assert {text.count("|") for text in table[2:]} == {10}
