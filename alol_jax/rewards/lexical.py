"""What matches words by their stems: coverage of given words, and METEOR.

The only module that imports nltk. Stems need no data; METEOR also matches synonyms, for which it
needs WordNet, which nltk downloads.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from alol_jax.errors import UserError
from alol_jax.rewards.text import Scorer

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]+")


def concept_coverage(train_responses: Sequence[str]) -> Scorer:
    """Share of the concepts whose stem is among the stems of the response, in [0, 1].

    Texts have the concepts in their first line, between spaces, and the response after it. Stems
    are those of the English Snowball stemmer (Porter 2001), in lower case. Without concepts, 0.
    """
    del train_responses

    def covered(text: str) -> float:
        first, _, response = text.partition("\n")
        concepts = set(map(_stem, first.lower().split()))
        found = set(map(_stem, _WORD.findall(response.lower())))
        return len(concepts & found) / max(len(concepts), 1)

    def score(texts: Sequence[str]) -> np.ndarray:
        return np.array([covered(text) for text in texts], np.float64)

    return score


@functools.cache
def _stemmer() -> Any:
    from nltk.stem.snowball import SnowballStemmer

    return SnowballStemmer("english")


@functools.lru_cache(maxsize=2**16)
def _stem(word: str) -> str:
    return _stemmer().stem(word)


def meteor(references: Sequence[str], response: str) -> float:
    """METEOR of a response, in [0, 1]: the best over the references.

    Words are matched exactly, then by Porter's stems, then, as nltk does it, by synonyms of these
    stems in WordNet. With P and R the shares of matched words in response and reference, and the m
    matches in c runs::

        F = P R / (0.9 P + 0.1 R)        METEOR = F · (1 − 0.5 (c / m)³)

    (Banerjee and Lavie 2005; Lavie and Agarwal 2007; nltk's defaults.) A word is a run of word
    characters, or of other characters that are no space.
    """
    from nltk.translate.meteor_score import meteor_score

    words = _TOKEN.findall(response)
    return float(meteor_score([_TOKEN.findall(text) for text in references], words))


def check_meteor(where: str) -> None:
    """Check that METEOR can be computed.

    Args:
      where: the config key that asks for it.

    Raises:
      UserError: nltk does not find WordNet.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise UserError(
            f"{where}: METEOR needs WordNet, which nltk does not find here: run "
            "`python -m nltk.downloader wordnet`"
        ) from error
