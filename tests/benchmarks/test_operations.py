"""benchmarks.operations: where time goes, by XLA operation."""

import re
import subprocess
import sys

from tests.running import ROOT, environment


def test_a_pass_and_a_step_are_taken_apart_by_operation():
    words = ["--config=configs/quickstart.py:debug", "--columns=64"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.operations", *words],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    tables = done.stdout.strip().split("\n\n")
    assert [table.split(",")[0] for table in tables] == ["| training", "| reading", "| decoding"]
    for table in tables:
        head, _, *rows = table.split("\n")
        assert float(re.search(r"\| (\d+) ms \|$", head)[1]) > 0
        kinds = {name.strip(): float(each) for _, name, each, _ in (row.split("|") for row in rows)}
        assert "all others" in kinds and not any(kind.startswith("while") for kind in kinds)
        largest = [each for kind, each in kinds.items() if kind != "all others"]
        assert largest == sorted(largest, reverse=True) and largest[0] > 0
