"""Two texts beside each other in a terminal."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence

GAP = "   "
NARROWEST = 20  # cells of a column; a narrower terminal gets one text below the other


def side_by_side(left: Sequence[str], right: Sequence[str], *, width: int) -> str:
    """Return two columns of paragraphs, wrapped, each paragraph beside the other's.

    Args:
        left, right: the same number of paragraphs.
        width: cells of the terminal.
    """
    column = (width - len(GAP)) // 2
    if column < NARROWEST:
        return "\n".join("\n".join(wrapped(text, width)) for text in (*left, "", *right))
    lines = []
    for one, other in zip(left, right, strict=True):
        pairs = itertools.zip_longest(wrapped(one, column), wrapped(other, column), fillvalue="")
        for a, b in pairs:
            lines.append((a + " " * (column - cells(a)) + GAP + b).rstrip())
    return "\n".join(lines)


def wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines of at most ``width`` cells, at spaces where there are any."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split(" "):
            if line and cells(line) + 1 + cells(word) <= width:
                line += " " + word
                continue
            if line:
                lines.append(line)
            *full, line = _pieces(word, width)
            lines += full
        lines.append(line)
    return lines


def cells(text: str) -> int:
    """Return how many cells of a terminal the text takes: two for a wide character."""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pieces(word: str, width: int) -> list[str]:
    """Cut a word that is wider than a line."""
    pieces = [""]
    for character in word:
        if cells(pieces[-1]) + _cells(character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces
