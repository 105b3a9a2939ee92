"""From an empty clone to a report: prepare, and the command that it prints."""

import io
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from alol_jax.prepare.places import PLACES
from tests.prepare.server import site
from tests.running import ROOT, environment
from tests.tasks.hha_cases import row

CONFIG = "configs/hha.py:debug"
TESTS = ("harmless_base", "helpful_base", "helpful_online", "helpful_rejection")


def lines(word, count):
    rows = (row(f"{word} {n}?", ("I love it.", "No."), (1.5 - n % 3, -1.0)) for n in range(count))
    return "".join(json.dumps(one) + "\n" for one in rows).encode()


def stand_ins(place, folder):
    """Rows in the published form at places on this machine, each under its published name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("data/hh_train_len2/train.json", lines("train", 90))
        opened.writestr("data/summarize_train_len2/train.json", "not wanted")
    bodies = {"pro-data.zip": archive.getvalue(), "sampled_dev.json": lines("dev", 20)}
    bodies |= {f"{name}.json": lines(name, 8) for name in TESTS}
    bodies["bad_test_indices.json"] = b'{"harmless_base.json": [2]}'
    places = {}
    for name, body in bodies.items():
        place.files[f"/{name}"] = body
        address = f"{place.address}/{name}"
        places[name] = {"files": dict(PLACES[name].files), "addresses": [address]}
    (folder / "places.json").write_text(json.dumps(places))


@pytest.fixture
def clone(tmp_path):
    for name in ("alol_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def typed(words, clone):
    """What a user types, in the clone and its environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = environment() | {"ALOL_PLACES": "places.json", "PATH": path}
    return subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_two_commands_lead_from_an_empty_clone_to_the_report(clone):
    with site() as place:
        stand_ins(place, clone)
        place.cut_after += [100]
        prepare = ["python", "-m", "alol_jax.prepare", f"--config={CONFIG}"]
        result = typed(prepare, clone)
        assert result.returncode == 0, result.stderr
        command = result.stdout.splitlines()[-1]
        assert command == f"python -m alol_jax.main --config={CONFIG} --workdir=runs/hha-debug"
        asked = len(place.asked)
        again = typed(prepare, clone)
        assert again.stdout.splitlines()[-1] == command and len(place.asked) == asked
        assert all(line.startswith("there: ") for line in again.stdout.splitlines()[:-2])
    run = typed(shlex.split(command), clone)
    assert run.returncode == 0, run.stderr
    told = json.loads((clone / "runs/hha-debug/09_report/results.json").read_text())
    assert told["task"] == "hha"
    assert run.stdout.splitlines()[-1].endswith("report.html")


def test_a_run_without_its_files_names_prepare(clone):
    result = typed(["python", "-m", "alol_jax.main", f"--config={CONFIG}", "--workdir=w"], clone)
    assert result.returncode == 2
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .endswith("`python -m alol_jax.prepare --config=…` brings it")
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--config is needed, like --config=configs/hha.py"),
        (["--config=none.py"], "--config: there is no file 'none.py': give one of configs/"),
        ([f"--config={CONFIG}", "--config.task.colour=1"], "the config has no key 'colour'"),
    ],
)
def test_a_command_that_is_wrong_is_one_line(flags, said, clone):
    (clone / "places.json").write_text("{}")
    result = typed(["python", "-m", "alol_jax.prepare", *flags], clone)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and said in line
