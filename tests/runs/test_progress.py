"""Progress: everything is yielded; a bar with the time left on a terminal, elsewhere nothing."""

import itertools
import re
import sys
import time

import pytest

from alol_jax.errors import Interrupted
from alol_jax.runs.progress import progress
from alol_jax.types import Watch


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
    assert re.search(r"fit: .*7/9 \[\d\d:\d\d<", capsys.readouterr().err)
    assert list(ahead) == [1]


@pytest.mark.parametrize(("terminal", "kind"), [(False, "xterm"), (True, "dumb")])
def test_nothing_is_shown_where_no_terminal_can_draw_a_bar(terminal, kind, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", kind)
    ticks = itertools.count(0.0, 60.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    assert list(progress(range(4), Watch("fit"), total=4)) == list(range(4))
    assert capsys.readouterr() == ("", "")


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
