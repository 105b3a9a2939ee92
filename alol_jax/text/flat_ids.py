"""Token ids of many texts, a batch at a time, as one flat array: adding tokens and cutting rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from alol_jax.tables.columns import Ragged

BATCH = 8192  # texts that are encoded together


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts, as many at a time as are encoded together."""
    return (list(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH))


def flat(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return all ids, i32[total], and the length of each row, i64[N]."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, lengths.sum()), lengths


def with_token(ids: Ragged, token: int, *, before: np.ndarray, kept: np.ndarray, after: np.ndarray):
    """Return each row's first ``kept`` ids, with ``token`` before or after them.

    Args:
      ids: N rows.
      before, after: bool[N], the rows that get the token there.
      kept: i64[N], at most the row's length.
    """
    sizes = kept + before + after
    out = np.full(sizes.sum(), token, np.int32)
    inside = np.arange(kept.sum()) - np.repeat(_starts(kept), kept)  # the place in its row
    source = np.repeat(_starts(ids.lengths), kept) + inside
    out[np.repeat(_starts(sizes) + before, kept) + inside] = ids.flat[source]
    return Ragged.of(out, sizes)


def without_head(ids: Ragged, head: Sequence[int]) -> tuple[Ragged, np.ndarray]:
    """Return the rows without the ids of ``head`` at their beginning, and which have them there:
    bool[N]. The others become empty."""
    begins = ids.lengths >= len(head)
    at = _starts(ids.lengths)[begins, None] + np.arange(len(head))
    begins[begins] = (ids.flat[at] == np.array(head, np.int32)).all(axis=1)
    kept = np.where(begins, ids.lengths - len(head), 0)
    inside = np.arange(kept.sum()) - np.repeat(_starts(kept), kept)
    flat = ids.flat[np.repeat(_starts(ids.lengths) + len(head), kept) + inside]
    return Ragged.of(flat, kept), begins


def first_ids(ids: Ragged, *, empty: int) -> np.ndarray:
    """Return the first id of each row, i32[N]; ``empty`` for a row without ids."""
    first = np.full(len(ids), empty, np.int32)
    some = ids.lengths > 0
    first[some] = ids.flat[_starts(ids.lengths)[some]]
    return first


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths
