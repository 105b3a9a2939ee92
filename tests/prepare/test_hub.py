"""Models and data sets of a hub on this machine, in processes of their own: the client reads the
address of the hub when it is imported."""

import json
import subprocess
import sys

import pytest

from tests.models.tiny_llama import random_weights, write_directory
from tests.prepare.hub import serving_hub
from tests.prepare.server import closed_port
from tests.running import ROOT, environment

CONFIG = """
from configs import common

def get_config(arg=None):
    config = common.get_config()
    config.task.update({"name": "own", "train_file": "rows.jsonl", "validation_file": "",
        "test_file": "", "validation": 1, "test": 1, "limit": 0, "more": ()})
    config.model.path = "someone/tiny"
    return common.finish(config, arg)
"""


@pytest.fixture
def here(tmp_path):
    """A folder like a clone of the project, with rows and a config."""
    for name in ("alol_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def hub(tmp_path):
    with serving_hub() as it:
        folder = tmp_path / "tiny"
        write_directory(folder, random_weights())
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        it.repositories["models/someone/tiny"] = files | {"README.md": b"-", "pytorch.bin": b"-"}
        yield it


def prepare(here, hub_address, *flags):
    command = [sys.executable, "-m", "alol_jax.prepare", "--config=tiny.py", *flags]
    env = environment() | {"HF_ENDPOINT": hub_address, "HF_HOME": str(here / "hf")}
    env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        command, cwd=here, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_model_is_brought_once(here, hub):
    listed = prepare(here, hub.address, "--list")
    size = sum(len(body) for name, body in hub.repositories["models/someone/tiny"].items()
               if name not in ("README.md", "pytorch.bin"))  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert hub.sent == []
    told = f"({size / 1e3:.1f} kB, from https://huggingface.co/someone/tiny, licence: mit)"
    assert listed.stdout.splitlines() == [
        "there: data rows.jsonl (33 B)",
        f"missing: model someone/tiny {told}",
    ]
    first = prepare(here, hub.address)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-3:] == [
        "brought: model someone/tiny",
        "everything is here; the run:",
        "python -m alol_jax.main --config=tiny.py --workdir=runs/tiny",
    ]
    assert {"config.json", "model.safetensors"} <= set(hub.sent)
    assert not {"README.md", "pytorch.bin"} & set(hub.sent)
    hub.sent.clear()
    again = prepare(here, closed_port())  # what is here needs no connection
    assert again.returncode == 0 and hub.sent == []
    assert again.stdout.splitlines() == [
        "there: data rows.jsonl",
        "there: model someone/tiny",
        *first.stdout.splitlines()[-2:],
    ]


def test_gated_missing_and_unreachable_repositories_are_one_line_each(here, hub):
    hub.repositories["models/someone/gated"] = hub.repositories["models/someone/tiny"]
    hub.gated.add("models/someone/gated")
    result = prepare(
        here, hub.address, "--config.model.path=someone/gated", "--config.model.adapter=some/none"
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-2:] == [
        "error: someone/gated is gated: accept its licence at "
        "https://huggingface.co/someone/gated, then log in with `hf auth login`",
        "error: some/none is neither a directory here nor on the Hugging Face hub, or it is "
        "private there: check the name, log in with `hf auth login`, or, if a config of ours "
        "names it, `python -m alol_jax.prepare --config=…` brings it",
    ]
    assert "2 of 3 are missing; with these, the run:" in result.stdout
    alone = prepare(here, closed_port())
    assert alone.returncode == 2
    (line,) = [line for line in alone.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        "error: someone/tiny is not a local directory and could not be downloaded"
    )


def test_a_split_of_a_data_set_is_brought_once(here, hub):
    row = json.dumps({"chosen": "a", "rejected": "b"}).encode() + b"\n"
    hub.repositories["datasets/someone/pairs"] = {
        "README.md": b"---\nlicense: mit\n---\n",
        "base/train.jsonl": row * 3,
        "base/test.jsonl": row,
        "other/train.jsonl": row,
    }
    flags = (
        "--config.model.path=random:llama-tiny",
        "--config.task.more=('someone/pairs:base:train',)",
    )
    first = prepare(here, hub.address, *flags)
    assert first.returncode == 0, first.stderr
    assert "brought: data set someone/pairs:base:train" in first.stdout
    assert "base/train.jsonl" in hub.sent and "other/train.jsonl" not in hub.sent
    hub.sent.clear()
    again = prepare(here, hub.address, *flags)
    assert again.returncode == 0, again.stderr
    assert "there: data set someone/pairs:base:train" in again.stdout
    assert not any(path.endswith(".jsonl") for path in hub.sent)
    gone = prepare(here, hub.address, *flags[:1], "--config.task.more=('someone/none:train',)")
    assert gone.returncode == 2
    (line,) = [line for line in gone.stderr.splitlines() if line.startswith("error: ")]
    assert (
        "someone/none:train: no such data set on the Hugging Face hub, or not for everyone" in line
    )
