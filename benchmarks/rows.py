"""The host's work for many rows: time, memory and disk of each stage that needs no model pass.

python -m benchmarks.rows --rows=200000

Writes a JSON lines file of short rows with stored rewards, then runs `load`, `score`,
`fit_reference` (0 epochs) and `select` for nll, each in a process of its own, and starts the
finished run once more. Prints a Markdown table; all seconds include the start of a process, which
the last line shows. Last, it times how long a training step waits for its rows.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from alol_jax.objectives.advantage import priority
from alol_jax.runs.artifacts import load_result
from alol_jax.training.batches import priority_draw, targets_of
from alol_jax.training.items import single_items
from alol_jax.types import TrainingTable

ROWS = flags.DEFINE_integer("rows", 50_000, "Rows of the file.")
FOLDER = flags.DEFINE_string(
    "folder", "", "Where file and workdir go; a temporary folder if empty."
)

WORDS = (
    "the a of to and in that it is was for on are as with his they at be this from or had by hot "
    "but some what there we can out other were all your when up use word how said an each she"
).split()
BATCH, DRAWS = 64, 50
STAGES = ("load", "score", "fit_reference", "select")


class Measured(NamedTuple):
    """One process."""

    what: str
    seconds: float
    peak: float  # MiB resident
    disk: float  # MiB that the stage wrote


def write_rows(file: Path, count: int) -> None:
    """Write ``count`` rows of about 130 bytes, the same in every run."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            row = {
                "prompt": " ".join(draw.choices(WORDS, k=8)) + f" {number}?",
                "response": " ".join(draw.choices(WORDS, k=9)),
                "reward": round(draw.random(), 3),
            }
            stream.write(json.dumps(row) + "\n")


def run(file: Path, workdir: Path, stages: str) -> tuple[float, float]:
    """Run these stages in a process; its seconds and its peak memory in MiB."""
    command = [
        *(sys.executable, "-m", "alol_jax.main", "--config=configs/own.py:debug"),
        *(f"--workdir={workdir}", f"--config.task.train_file={file}", "--config.task.limit=0"),
        *("--config.objective.name=nll", "--config.reference.epochs=0", f"--stages={stages}"),
    ]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{stages} ended with code {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - began, used.ru_maxrss / 1024


def size_of(folder: Path) -> float:
    """MiB of all files below ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def measure(folder: Path, count: int) -> list[Measured]:
    """All stages in order, an empty start, and the finished run again."""
    file, workdir = folder / "rows.jsonl", folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    if workdir.exists():
        raise FileExistsError(f"{workdir} exists: give another --folder")
    write_rows(file, count)
    found = []
    for number, stage in enumerate(STAGES):
        seconds, peak = run(file, workdir, ",".join(STAGES[: number + 1]))
        (written,) = workdir.glob(f"*_{stage}")
        found.append(Measured(stage, seconds, peak, size_of(written)))
    found.append(Measured("finished run again", *run(file, workdir, ",".join(STAGES)), 0.0))
    few = folder / "few.jsonl"
    write_rows(few, 200)
    found.append(
        Measured("all of it for 200 rows", *run(few, folder / "few", ",".join(STAGES)), 0.0)
    )
    return found


def time_draws(workdir: Path) -> tuple[float, float]:
    """Milliseconds to draw, and to read, a batch of the finished run's rows by their reward."""
    rows = load_result(next(workdir.glob("*_select")), TrainingTable).rows
    items = single_items(rows)
    draw = priority_draw(priority(rows["reward"]), size=BATCH, seed=0)
    drawn, read = [], []
    for step in range(DRAWS):
        began = time.perf_counter()
        chosen = draw(step)
        middle = time.perf_counter()
        items.examples(chosen), targets_of(items, chosen, items.longest)
        drawn.append(middle - began)
        read.append(time.perf_counter() - middle)
    return 1000 * statistics.median(drawn), 1000 * statistics.median(read)


def main(arguments: list[str]) -> None:
    del arguments
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FOLDER.value or temporary)
        found = measure(folder, ROWS.value)
        drawn, read = time_draws(folder / "run")
    print(f"{ROWS.value} rows\n\n| | seconds | rows/s | peak MiB | MiB on disk |")
    print("|---|---:|---:|---:|---:|")
    for one in found:
        rate = f"{ROWS.value / one.seconds:,.0f}" if one.disk else ""
        disk = f"{one.disk:.0f}" if one.disk else ""
        print(f"| {one.what} | {one.seconds:.1f} | {rate} | {one.peak:.0f} | {disk} |")
    print(f"\nA step draws {BATCH} rows in {drawn:.1f} ms and reads them in {read:.1f} ms.")


if __name__ == "__main__":
    app.run(main)
