"""Real processes that find each other, agree, wait and fail."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alol_jax.devices import processes
from alol_jax.errors import UserError

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from alol_jax.devices import processes
from alol_jax.devices.together import together
from alol_jax.errors import UserError
processes.START_SECONDS = 10
how, what = sys.argv[1:]
try:
    processes.start(how)
except UserError as error:
    sys.exit(f"error: {error}")
with together(str):
    rank = processes.rank()
    if what == "agree":
        assert processes.gather("ranks", rank) == list(range(processes.count()))
        assert processes.from_first("a number", lambda: 7 + rank) == 7
        processes.check_all("nothing wrong", "")
        print("agreed")
    if what == "fail" and rank == 1:
        raise UserError("the disk is full")
    if what == "fail":
        time.sleep(60)
    if what == "problem":
        processes.check_all("looking", "no such file" if rank == 1 else "")
    if what == "first":
        processes.from_first("reading", lambda: open("/no/such/file"))
    if what == "late":
        if rank == 1:
            time.sleep(15)
        processes.meet("select", seconds=2)
"""


def run(what: str, ranks: list[int], counts: list[int]) -> list[tuple[int, list[str]]]:
    """Exit code and the lines of errors of each process; or "agreed"."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"{address},{rank},{count}", what],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, count in zip(ranks, counts, strict=True)
    ]
    outs = [process.communicate(timeout=120)[0] for process in started]
    kept = [
        [line for line in out.splitlines() if line.startswith(("error: ", "agreed"))]
        for out in outs
    ]
    return [(process.returncode, lines) for process, lines in zip(started, kept, strict=True)]


def test_processes_exchange_values_in_order():
    assert run("agree", [0, 1], [2, 2]) == [(0, ["agreed"])] * 2


def test_a_failure_of_one_process_ends_all_with_its_words():
    first, second = run("fail", [0, 1], [2, 2])
    host = socket.gethostname()
    assert first == (2, [f"error: process 1 ({host}): the disk is full"])
    assert second == (2, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rank", "words"),
    [
        ("problem", 1, ": no such file"),
        ("first", 0, "No such file or directory: '/no/such/file'"),
        ("late", 0, "select: waited 2 s for process 1 ("),
    ],
)
def test_what_goes_wrong_in_one_place_is_said_once(what, rank, words):
    first, second = run(what, [0, 1], [2, 2])
    assert (first[0], second[0]) == (2, 2)
    assert len(first[1]) == 1 and words in first[1][0]
    assert first[1][0].startswith(f"error: process {rank} (")
    assert second[1] == []


@pytest.mark.slow
def test_a_coordinator_that_is_not_there_is_one_line():
    ((code, lines),) = run("agree", [1], [2])
    assert code == 1
    assert len(lines) == 1 and "can this one reach the port of process 0" in lines[0]


@pytest.mark.slow
def test_two_processes_of_one_rank_are_refused():
    found = run("agree", [0, 1, 1], [3, 3, 3])
    assert [code for code, _ in found] == [1, 1, 1]
    assert all("none the RANK of another" in line for _, (line,) in found)


@pytest.mark.slow
def test_processes_with_other_counts_are_refused():
    first, second, third = run("agree", [0, 1, 2], [2, 3, 3])
    assert first[0] == 2 and "COUNT is 3 here, and 2 in process 0" in first[1][0]
    assert second[0] == 2
    assert third[0] == 1 and "the same COUNT" in third[1][0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("here", "expected auto, off or HOST:PORT,RANK,COUNT"),
        ("host:1234,0", "expected auto, off or HOST:PORT,RANK,COUNT"),
        ("host:1234,zero,2", "expected auto, off or HOST:PORT,RANK,COUNT"),
        ("host:1234,2,2", "RANK must be from 0 to COUNT - 1"),
        ("host,0,2", "'host' is not HOST:PORT"),
        ("host:port,0,2", "'host:port' is not HOST:PORT"),
    ],
)
def test_a_flag_that_cannot_be_read_is_one_line(how, words):
    with pytest.raises(UserError, match="--distributed=") as error:
        processes.start(how)
    assert words in str(error.value)


def test_alone_there_is_nothing_to_agree_on():
    assert processes.gather("x", 3) == [3]
    assert processes.from_first("x", lambda: 4) == 4
    processes.meet("x")
    with pytest.raises(UserError, match="^no such file$"):
        processes.check_all("x", "no such file")
