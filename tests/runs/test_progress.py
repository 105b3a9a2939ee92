"""Progress: everything is yielded; a line now and then where there is no terminal."""

import itertools
import re
import sys

import pytest

from alol_jax.errors import Interrupted
from alol_jax.runs import progress as module
from alol_jax.runs.progress import progress
from alol_jax.types import Watch


@pytest.fixture
def clock(monkeypatch):
    """Every question about the time finds it four seconds later."""
    ticks = itertools.count(0.0, 4.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(ticks))


@pytest.mark.parametrize("terminal", [False, True])
def test_every_item_is_yielded_in_order(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    items = (n for n in range(7))
    assert list(progress(items, Watch("rows"), total=7)) == list(range(7))
    assert capsys.readouterr().out == ""


def test_a_terminal_sees_a_bar_that_begins_where_the_run_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    ahead = progress(range(2), Watch("fit"), total=9, done=7)
    next(ahead)
    assert re.search(r"fit: .*7/9", capsys.readouterr().err)
    assert list(ahead) == [1]


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert list(progress(range(4), Watch("fit"), total=4)) == list(range(4))
    assert capsys.readouterr().err.splitlines() == ["  fit: 3/4, 0.25/s, 4 s left"]


def test_plain_lines_come_every_so_often_and_count_what_was_done_before(clock, capsys):
    assert list(progress(range(8), Watch("fit"), total=12, done=4)) == list(range(8))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  fit: 7/12, 0.25/s, 20 s left",
        "  fit: 10/12, 0.25/s, 8 s left",
    ]


def test_a_short_loop_says_nothing(capsys):
    list(progress(range(3), Watch("rows"), total=3))
    assert capsys.readouterr().err == ""


def test_it_makes_no_item_before_it_is_asked_for():
    made = []
    ahead = progress((made.append(n) or n for n in range(5)), Watch("rows"), total=5)
    next(ahead)
    assert made == [0]


def test_a_loop_that_is_asked_to_stop_ends_after_the_item_at_hand():
    done = []
    with pytest.raises(Interrupted, match="^rows: 2 of 5 done, to be repeated$"):
        for item in progress(range(5), Watch("rows", stopping=lambda: len(done) == 2), total=5):
            done.append(item)
    assert done == [0, 1]


def test_a_loop_that_is_asked_to_stop_at_its_end_is_complete():
    assert list(progress(range(3), Watch("rows", stopping=lambda: False), total=3)) == [0, 1, 2]
    done = []
    for item in progress(range(3), Watch("rows", stopping=lambda: len(done) == 3), total=3):
        done.append(item)
    assert done == [0, 1, 2]
