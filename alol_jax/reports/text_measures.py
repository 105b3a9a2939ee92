"""Measures of a response against the text that it rests on, or against the data's responses to the
same prompt, for the evaluation.

Extractive fragments (Grusky et al. 2018, arXiv 1804.11283): walking through the words of the
response, the longest run of words from each place on that the source has, too. With f the fragments
and n the words of the response::

    coverage = Σ |f| / n        density = Σ |f|² / n        (0 without words)

Coverage is the share of the words that come from the source; density grows with the length of what
is copied. METEOR, of the data's responses: `lexical.meteor`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alol_jax.rewards.lexical import meteor

TextMeasure = Callable[[str, str], float]
ReferenceMeasure = Callable[[Sequence[str], str], float]


def fragments(source: Sequence[str], words: Sequence[str]) -> list[int]:
    """Return the lengths of the extractive fragments of ``words``."""
    found, place = [], 0
    while place < len(words):
        longest = max((_shared(source[at:], words[place:]) for at in range(len(source))), default=0)
        if longest:
            found.append(longest)
        place += max(longest, 1)
    return found


def published_fragments(source: Sequence[str], words: Sequence[str]) -> list[int]:
    """The fragments of the published code: a longer run replaces a shorter one only if it has two
    more words, so that single words never count; and a source is not searched inside of a run."""
    found, place = [], 0
    while place < len(words):
        longest, at = 0, 0
        while at < len(source):
            shared = _shared(source[at:], words[place:])
            if shared > longest + 1:
                longest = shared
            at += max(shared, 1)
        if longest:
            found.append(longest)
        place += max(longest, 1)
    return found


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """The words that both begin with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def coverage(source: str, response: str) -> float:
    """The share of the words of the response that are in fragments, in lower case."""
    words = response.lower().split()
    return sum(fragments(source.lower().split(), words)) / max(len(words), 1)


def density(source: str, response: str) -> float:
    """Σ |f|² / n, in lower case."""
    words = response.lower().split()
    return _squares(fragments(source.lower().split(), words)) / max(len(words), 1)


def published_coverage(source: str, response: str) -> float:
    """Coverage by `published_fragments`, in the case of the texts."""
    words = response.split()
    return sum(published_fragments(source.split(), words)) / max(len(words), 1)


def published_density(source: str, response: str) -> float:
    """Density by `published_fragments`, in the case of the texts."""
    words = response.split()
    return _squares(published_fragments(source.split(), words)) / max(len(words), 1)


def _squares(lengths: Sequence[int]) -> int:
    return sum(length**2 for length in lengths)


SOURCE_MEASURES: dict[str, TextMeasure] = {
    "coverage": coverage,
    "density": density,
    "published_coverage": published_coverage,
    "published_density": published_density,
}
"""Name -> (source, response) -> measure. The source is the first text of `Exchange.pair`."""

REFERENCE_MEASURES: dict[str, ReferenceMeasure] = {"meteor": meteor}
"""Name -> (the data's responses to the prompt, response) -> measure."""

TEXT_MEASURES: tuple[str, ...] = (*SOURCE_MEASURES, *REFERENCE_MEASURES)
"""The names of all measures."""


def measured(
    name: str,
    pairs: Sequence[tuple[str, str]],
    references: Sequence[Sequence[str]] | None,
) -> np.ndarray | None:
    """Apply a measure to (source, response) pairs: f64[N].

    Args:
        references: the data's responses to each prompt; None if the responses are these, which
            have no value of a measure against them.
    """
    if name in SOURCE_MEASURES:
        found = [SOURCE_MEASURES[name](*pair) for pair in pairs]
    elif references is None:
        return None
    else:
        compare = REFERENCE_MEASURES[name]
        found = [
            compare(texts, response) for texts, (_, response) in zip(references, pairs, strict=True)
        ]
    return np.array(found, np.float64)


_EXPLAINED = {
    "coverage": "coverage is the share of an answer's words that it shares with its source text",
    "density": "density grows with the length of what is copied from it",
    "meteor": "meteor is the likeness to the data's responses to the prompt",
}


def explained(names: Sequence[str]) -> str:
    """Say in a sentence what these measures are."""
    plain = dict.fromkeys(name.removeprefix("published_") for name in names)
    said = "; ".join(_EXPLAINED[name] for name in plain)
    return f"{said[0].upper()}{said[1:]}."
