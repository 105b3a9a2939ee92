"""Two texts beside each other: nothing is lost, nothing is wider than the terminal."""

import pytest

from alol_jax.reports.side_by_side import GAP, cells, side_by_side, wrapped

LEFT = ["reference", "", "I am fine, thank you very much for asking me today.", "", "reward 1.5"]
RIGHT = ["policy", "", "Great!", "", "reward 1.8"]


def test_paragraphs_stand_beside_each_other():
    lines = side_by_side(LEFT, RIGHT, width=60).splitlines()
    start = (60 - len(GAP)) // 2 + len(GAP)
    assert lines[0][:9] == "reference" and lines[0][start:] == "policy"
    assert lines[-1][start:] == "reward 1.8" and lines[-1].startswith("reward 1.5")
    assert " ".join(line[: start - len(GAP)].strip() for line in lines[2:4]) == LEFT[2]


@pytest.mark.parametrize("width", [30, 43, 60, 200])
def test_every_word_is_there_and_no_line_is_too_wide(width):
    text = side_by_side(LEFT, RIGHT, width=width)
    assert max(map(cells, text.splitlines())) <= width
    assert sorted(text.split()) == sorted(" ".join([*LEFT, *RIGHT]).split())


def test_a_narrow_terminal_gets_one_text_below_the_other():
    lines = side_by_side(LEFT, RIGHT, width=30).splitlines()
    assert lines.index("policy") > lines.index("reward 1.5")


def test_lines_break_at_spaces_and_long_words_anywhere():
    assert wrapped("one two three", 7) == ["one two", "three"]
    assert wrapped("abcdefgh ij", 3) == ["abc", "def", "gh", "ij"]
    assert wrapped("a\n\nb", 9) == ["a", "", "b"]
    assert wrapped("", 9) == [""]


def test_wide_characters_take_two_cells_and_marks_none():
    assert cells("日本") == 4 and cells("e\u0301") == 1 and cells("a\u200db") == 2
    assert wrapped("日本語", 4) == ["日本", "語"]
