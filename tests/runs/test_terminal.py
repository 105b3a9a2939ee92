"""What is printed reaches any terminal, and a pipe that nobody reads is no error."""

import subprocess
import sys

import pytest

from tests.running import ROOT, environment

SAID = "4 × TPU ─ mean ≥ −1 ± 0.5 … é 語"
PRINTS = f"""
import sys
from alol_jax.runs.command_line import guarded
from alol_jax.runs.progress import say
def run():
    say({ascii(SAID)})
    sys.stderr.write({ascii("Ünïcode")})
guarded(run)
"""
LOOP = """
import sys
from alol_jax.errors import Interrupted
from alol_jax.runs.command_line import guarded, stop_on_signals
from alol_jax.runs.progress import say
def run():
    stopping = {stopping}
    for n in range(1_000_000):
        say(f"line {{n}}")
        if stopping():
            open(sys.argv[1], "w").write("saved")
            sys.exit(143)
sys.exit(guarded(run))
"""


def python(text, *arguments, **variables):
    words = [sys.executable, "-c", text, *arguments]
    return subprocess.run(
        words, cwd=ROOT, env=environment() | variables, capture_output=True, check=True
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_terminal_that_lacks_characters_gets_others(variables):
    done = python(PRINTS, **variables)
    assert done.stdout.decode("ascii") == "4 x TPU - mean >= -1 +- 0.5 ... e ?\n"
    assert done.stderr.decode("ascii") == "Unicode"


def test_a_terminal_that_has_them_gets_them_unchanged():
    done = python(PRINTS, PYTHONIOENCODING="utf-8")
    assert done.stdout.decode("utf-8") == f"{SAID}\n"


@pytest.mark.parametrize("stopping", ["stop_on_signals()", "lambda: False"])
@pytest.mark.parametrize("errors", ["", "2>&1"])
def test_a_closed_pipe_ends_the_program_quietly_and_safely_where_it_can(stopping, errors, tmp_path):
    line = f'"$1" -c "$2" "$3" {errors} | head -n 2; echo "${{PIPESTATUS[0]}}"'
    words = [sys.executable, LOOP.format(stopping=stopping), str(tmp_path / "file")]
    done = subprocess.run(
        ["bash", "-c", line, "piped", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "line 0\nline 1\n143\n" and done.stderr == ""
    assert (tmp_path / "file").exists() == (stopping == "stop_on_signals()")
