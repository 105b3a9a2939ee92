"""A report as one HTML page: plain values in, text out. The only door of jinja2.

A page is a list of sections and every section may hold text, tables, figures and answers side by
side. All text is escaped by the template; only ``Figure.svg`` goes in as it is. The page needs no
network and no JavaScript.
"""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

import jinja2


class Cell(NamedTuple):
    """One table cell. A number carries its exact value besides the rounded text."""

    text: str
    exact: float | None = None
    interval: str = ""  # printed small behind the number
    share: float | None = None  # 0 to 1: drawn as a bar behind the text
    full: str = ""  # the whole of a text that was shortened; opens on a click
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
    svg: str  # of ``alol_jax.reports.figures``; trusted, not escaped
    caption: str


class Answer(NamedTuple):
    system: str
    text: str
    reward: str  # printed; empty where nothing scored it
    components: str  # printed small; may be empty


class Comparison(NamedTuple):
    """One prompt with the answers of several systems."""

    prompt: Cell
    difference: str  # printed; empty where nothing scored the answers
    answers: tuple[Answer, ...]


class Section(NamedTuple):
    anchor: str
    title: str
    text: tuple[str, ...] = ()  # paragraphs
    notes: tuple[str, ...] = ()  # a list behind a click
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    folded: str = ""  # preformatted text behind a click


class Page(NamedTuple):
    title: str
    badge: str  # the verdict in a word or two
    tone: str  # CSS class of the verdict: "better", "worse" or "open"
    verdict: str
    facts: tuple[tuple[str, str], ...]  # (what, how much): the tiles below the verdict
    run: tuple[tuple[str, str], ...]  # (what, which): the line below the title
    sections: tuple[Section, ...]


def render(page: Page) -> str:
    """The page as one self-contained HTML text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("alol_jax.reports").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page)


def shorten(text: str, most: int) -> Cell:
    """A long text by its beginning, cut between words; the whole behind a click."""
    if len(text) <= most:
        return Cell(text)
    return Cell(text[:most].rsplit(maxsplit=1)[0] + " …", full=text)


def shorten_start(text: str, most: int) -> Cell:
    """A long text by its end, where a dialogue's last turn is; the whole behind a click."""
    if len(text) <= most:
        return Cell(text)
    return Cell("… " + text[-most:].split(maxsplit=1)[-1], full=text)
