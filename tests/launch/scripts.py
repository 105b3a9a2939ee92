"""Runs the scripts of launch/, with stand-ins for the programs that they call."""

import os
import subprocess
from pathlib import Path

from tests.running import ROOT

SCRIPTS = sorted((*ROOT.glob("launch/**/*.sh"), *ROOT.glob("launch/**/*.sbatch")))


def bash(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """What ``bash launch/<script> <arguments>`` prints, in the project's folder."""
    return run_line(["bash", f"launch/{script}", *arguments], ROOT, **environment)


def run_line(
    words: list[str], folder: Path, *, stand_ins: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """What a command prints; programs of the folder ``stand_ins`` are found first."""
    found_first = f"{stand_ins}{os.pathsep}" if stand_ins else ""
    kept = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
    return subprocess.run(
        words,
        cwd=folder,
        env=kept | {"PATH": found_first + os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def stand_in(folder: Path, name: str, script: str) -> None:
    """Put a program of this name, a shell script, into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)
