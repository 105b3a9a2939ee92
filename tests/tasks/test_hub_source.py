"""Data sets of a hub on this machine, in a process of its own: the client reads the address of the
hub when it is imported."""

import json
import subprocess

import pytest

from tests.prepare.hub import SHA, serving_hub
from tests.running import ROOT, command, environment, refused

CARD = b"""---
configs:
- config_name: en
  data_files: english/*.jsonl
- config_name: de
  data_files: german/*.jsonl
---
"""


def _rows(name, count):
    rows = [{"prompt": f"{name} {n}", "chosen": "yes", "rejected": "no"} for n in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def hub():
    with serving_hub() as it:
        it.repositories["datasets/some/folders"] = {
            "base/train.jsonl": _rows("base", 9),
            "base/test.jsonl": _rows("test", 5),
            "other/train.jsonl": b"no JSON",
        }
        it.repositories["datasets/some/configs"] = {
            "README.md": CARD,
            "english/train.jsonl": _rows("english", 7),
            "german/train.jsonl": _rows("german", 8),
        }
        yield it


def _load(folder, hub, text):
    held_out = ("--config.task.validation=2", "--config.task.test=2", "--config.task.limit=0")
    words = (f"--config.task.train_file={text}", "--stages=load", *held_out)
    env = environment() | {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf")}
    env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        command(folder / "run", *words, config="configs/own.py:debug"),
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_reads_configs_folders_splits_and_revisions_and_says_the_commit(tmp_path, hub):
    names = ("some/folders:base:test@v1", "some/folders:base:train", "some/configs:de")
    result = _load(tmp_path, hub, ",".join(names))
    assert result.returncode == 0, result.stderr
    assert "[load] Read as a pair (prompt, chosen, rejected): 22 rows." in result.stdout
    for name in names:
        assert f"[load] {name}: read at commit {SHA}." in result.stdout
    assert "[load] train: 18 prompts, 36 responses" in result.stdout


def test_a_data_set_that_asks_for_a_token_says_how_to_log_in(tmp_path, hub):
    hub.repositories["datasets/some/gated"] = hub.repositories["datasets/some/folders"]
    hub.gated.add("datasets/some/gated")
    line = refused(_load(tmp_path, hub, "some/gated:base:train"))
    assert line.startswith("error: some/gated:base:train: cannot load 'train' from the Hugging")
    assert "accept its terms at https://huggingface.co/datasets/some/gated and log in" in line


def test_what_the_hub_does_not_have_is_one_line(tmp_path, hub):
    for name in ("some/none", "some/configs:fr:train", "some/configs"):
        line = refused(_load(tmp_path, hub, name))
        assert line.startswith(f"error: {name}: cannot load 'train' from the Hugging Face hub (")
