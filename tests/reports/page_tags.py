"""A page as its tags, to look at what is in it and what it would load."""

import re
from html.parser import HTMLParser


class Tags(HTMLParser):
    """Every tag with its attributes; fails on an unbalanced page."""

    VOID = {"meta", "br", "img", "link", "input", "hr", "use"}

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def tags(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    assert not parser.open
    return parser


def assert_loads_nothing(html: str) -> None:
    """Every reference stays within the page."""
    found = tags(html).found
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found}
    for _, attributes in found:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
