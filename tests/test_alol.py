"""The command ``alol``: every program by a name, with its own arguments."""

import os
import subprocess
import sys
import tomllib

import pytest

from alol_jax.__main__ import PROGRAMS, command, entry
from tests.running import ROOT, environment


def alol(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "alol_jax", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_name_stands_for_a_program_that_can_be_run_as_a_module():
    for name, program in PROGRAMS.items():
        place = ROOT / "alol_jax" / program.module
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), name


def test_every_program_has_a_name():
    runs = {
        path.stem for path in (ROOT / "alol_jax").glob("*.py") if "__main__" in path.read_text()
    }
    runs |= {path.parent.name for path in (ROOT / "alol_jax").glob("*/__main__.py")}
    assert {program.module for program in PROGRAMS.values()} == runs - {"__main__"}


def test_the_arguments_reach_the_program_as_they_are(monkeypatch):
    words = ["--config=configs/x.py:a=b,c", "--config.task.template={prompt} \n", ""]
    asked = []
    monkeypatch.setattr(sys, "argv", ["alol", "run", *words])
    monkeypatch.setattr(os, "execv", lambda *called: asked.append(called))
    entry()
    (called,) = asked
    assert called == (sys.executable, [sys.executable, "-m", "alol_jax.main", *words])
    assert command(["run", *words]) == called[1]


def test_the_program_answers_as_it_does_without_the_command():
    result = alol("compare", "nowhere", "--out=x", "--wat")
    assert result.returncode == 2
    assert result.stderr == "error: unrecognized arguments: --wat\n"


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)])
def test_without_a_name_it_lists_the_programs(words):
    result = alol(*words)
    assert result.returncode == 0 and result.stderr == ""
    assert all(f"  {name} " in result.stdout for name in PROGRAMS)


def test_an_unknown_name_is_one_line():
    result = alol("evaluate")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: alol: no program 'evaluate': expected one of run, sw")
    assert "did you mean 'sweep'?" in alol("sweeep").stderr


def test_the_installed_command_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"alol": "alol_jax.__main__:entry"}
