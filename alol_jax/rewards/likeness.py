"""chrF++, the likeness of two texts. The only module that imports sacrebleu."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _metric() -> Any:
    from sacrebleu.metrics import CHRF  # only runs with stored rewards need it

    return CHRF(word_order=2)


def chrf(reference: str, response: str) -> float:
    """chrF++ of a response against a reference, from 0 to 100.

    The F score, with recall counting twice as much as precision, averaged over n-grams of one to
    six characters and of one and two words (Popović 2017; sacrebleu's defaults).
    """
    return float(_metric().sentence_score(response, [reference]).score)
