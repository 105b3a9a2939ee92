"""Worker processes: results in order, few pieces ahead, and one line where a worker dies."""

import os
import signal

import pytest

from alol_jax.errors import UserError
from alol_jax.runs import workers as pool
from alol_jax.runs.workers import map_in_processes, workers_for


def _double(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def _die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _fail(number: int) -> int:
    raise UserError(f"{number} is bad")


def test_results_come_in_order_from_other_processes_and_few_pieces_are_made_ahead():
    made = []

    def pieces():
        for number in range(40):
            made.append(number)
            yield (number,)

    found = map_in_processes(_double, pieces(), workers=2)
    first = next(found)
    assert len(made) <= 2 * pool.AHEAD + 1
    every = [first, *found]
    assert [value for value, _ in every] == [2 * number for number in range(40)]
    assert os.getpid() not in {process for _, process in every}


def test_a_worker_that_is_killed_is_one_line_with_a_way_out():
    pieces = ((number,) for number in range(20))
    with pytest.raises(
        UserError, match="one of 2 worker processes was killed, perhaps for lack of"
    ):
        list(map_in_processes(_die, pieces, workers=2))


def test_an_error_in_a_worker_is_the_error():
    with pytest.raises(UserError, match="0 is bad"):
        list(map_in_processes(_fail, [(0,)], workers=1))


def test_few_pieces_are_worth_no_process(monkeypatch):
    monkeypatch.setattr(pool, "cpu_count", lambda: 8)
    assert [workers_for(n) for n in (0, 1, 3, 8, 100)] == [1, 1, 1, 4, 8]
