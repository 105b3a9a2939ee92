"""What is read of the hub may name its revision; the commit is in the record and in the report."""

import json
import subprocess

import pytest

from alol_jax.main import summarise
from alol_jax.reports.sections import versions
from alol_jax.text.tokenizer_files import byte_level, save
from alol_jax.types import Splits, read_at
from configs import quickstart
from tests.models.tiny_llama import random_weights, write_directory
from tests.prepare.hub import SHA, serving_hub
from tests.running import ROOT, SMALL, command, environment, refused

MODEL, DATA = "someone/tiny@v1", "someone/rows@2024"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    write_directory(folder, random_weights())
    save(byte_level(), folder)
    rows = [{"prompt": f"q {n}?", "response": "fine", "reward": n % 2} for n in range(40)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with serving_hub() as it:
        it.repositories["models/someone/tiny"] = {
            file.name: file.read_bytes() for file in folder.iterdir()
        }
        it.repositories["datasets/someone/rows"] = {"train.jsonl": lines}
        yield it


def run(folder, hub, *arguments):
    env = environment() | {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf")}
    env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    small = [one for one in SMALL if "test" not in one]
    words = (f"--config.task.train_file={DATA}", "--config.task.test=8", *small, *arguments)
    return subprocess.run(
        command(folder / "run", *words, config="configs/own.py:debug"),
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_commits_of_model_and_data_are_in_the_records(hub, tmp_path):
    untrained = ("--config.reference.epochs=0", "--stages=load,score,fit_reference")
    result = run(tmp_path, hub, f"--config.model.path={MODEL}", *untrained)
    assert result.returncode == 0, result.stderr
    read = {
        name: json.loads((tmp_path / "run" / name / "record.json").read_text())
        for name in ("01_load", "03_fit_reference")
    }
    assert read["01_load"]["commits"] == {DATA: SHA}
    assert read["03_fit_reference"]["commits"] == {MODEL: SHA}
    file = tmp_path / "run" / "03_fit_reference" / "record.json"
    file.write_text(json.dumps(read["03_fit_reference"] | {"commits": {MODEL: "0" * 40}}))
    again = run(tmp_path, hub, f"--config.model.path={MODEL}", *untrained)  # the same weights
    assert "[fit_reference] already done" in again.stdout, again.stderr


def test_an_adapter_and_a_model_that_the_hub_lacks_name_the_revision(hub, tmp_path):
    line = refused(run(tmp_path, hub, "--config.model.path=someone/none@v1"))
    assert line.startswith("error: someone/none is neither a directory here nor on the Hugging")
    line = refused(run(tmp_path, hub, "--config.model.adapter=someone/none@v1"))
    assert "someone/none is neither a directory here nor on the Hugging" in line


def test_the_report_has_the_commits():
    config = quickstart.get_config("debug")
    summary = summarise(config, "own", (), {MODEL: SHA, DATA: "0" * 40})
    assert summary.fingerprint == summarise(config, "own", (), {}).fingerprint
    section = versions(summary)
    assert [[cell.text for cell in row.cells] for row in section.tables[1].rows] == [
        [MODEL, SHA],
        [DATA, "0" * 40],
    ]
    assert len(versions(summarise(config, "own", (), {})).tables) == 1


def test_the_commits_of_data_are_read_from_its_notes():
    notes = ("Read as a pair: 3 rows.", read_at(DATA, SHA), "who: read at commit of yesterday.")
    assert Splits(None, None, None, notes, None).commits == {DATA: SHA}
