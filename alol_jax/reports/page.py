"""A report as one HTML page: plain values in, text out. Only this module imports jinja2.

A page is a list of sections, and a section can have text, tables, figures and answers side by side.
The template escapes all text except ``Figure.svg``. The page needs no network and no JavaScript.
"""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

import jinja2


class Cell(NamedTuple):
    """One table cell. A number has its exact value as well as the rounded text."""

    text: str
    exact: float | None = None
    interval: str = ""  # in small print after the number
    share: float | None = None  # 0 to 1, drawn as a bar before the text
    full: str = ""  # the full text if it was shortened; opens on click
    mark: str = ""  # CSS classes of a coloured mark before the text


class Column(NamedTuple):
    name: str
    numeric: bool
    system: str = ""  # "data", "reference" or "policy": the colour of the column's mark


class Row(NamedTuple):
    cells: tuple[Cell, ...]
    strong: bool = False


class Table(NamedTuple):
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


class Figure(NamedTuple):
    title: str
    svg: str  # from ``alol_jax.reports.figures``; trusted, not escaped
    caption: str


class Answer(NamedTuple):
    system: str
    text: str
    reward: str  # as text; empty if nothing scored it
    components: str  # in small print; may be empty


class Comparison(NamedTuple):
    """One prompt with the answers of several systems."""

    prompt: Cell
    difference: str  # as text; empty if nothing scored the answers
    answers: tuple[Answer, ...]


class Section(NamedTuple):
    anchor: str
    title: str
    text: tuple[str, ...] = ()  # paragraphs
    notes: tuple[str, ...] = ()  # a list that opens on click
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    folded: str = ""  # preformatted text that opens on click


class Page(NamedTuple):
    title: str
    badge: str  # the verdict in a word or two
    tone: str  # CSS class of the verdict: "better", "worse" or "open"
    verdict: str
    facts: tuple[tuple[str, str], ...]  # (name, value): the tiles below the verdict
    run: tuple[tuple[str, str], ...]  # (name, value): the line below the title
    sections: tuple[Section, ...]


def render(page: Page) -> str:
    """Render the page as one self-contained HTML text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("alol_jax.reports").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page)


def shorten(text: str, most: int) -> Cell:
    """Cut a long text at the end, between words; the full text opens on click."""
    if len(text) <= most:
        return Cell(text)
    return Cell(text[:most].rsplit(maxsplit=1)[0] + " …", full=text)


def shorten_start(text: str, most: int) -> Cell:
    """Cut a long text at the start, to keep a dialogue's last turn; the rest opens on click."""
    if len(text) <= most:
        return Cell(text)
    return Cell("… " + text[-most:].split(maxsplit=1)[-1], full=text)
