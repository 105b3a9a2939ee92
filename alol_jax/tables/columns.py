"""The columns of a table: numbers, texts, and lists of either.

Every column is an Arrow array; what a reader gets is a view of it.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK = 65_536  # rows that are converted to Python objects together

TEXT = pa.large_string()

ARROW: dict[Any, pa.DataType] = {
    str: TEXT,
    int: pa.int64(),
    bool: pa.bool_(),
    float: pa.float64(),
    tuple[int, ...]: pa.large_list(pa.int32()),
    tuple[float, ...]: pa.large_list(pa.float64()),
    tuple[np.float32, ...]: pa.large_list(pa.float32()),
    tuple[str, ...]: pa.large_list(TEXT),
}
"""The annotation of a dataclass field -> how its column is stored."""


class Texts(Sequence):
    """A column of texts. A Python string is made when it is looked at."""

    def __init__(self, arrow: pa.ChunkedArray) -> None:
        self.arrow = arrow

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Return the texts as a column.

        Raises:
            UnicodeEncodeError: a text has a lone surrogate.
        """
        return texts if isinstance(texts, Texts) else cls(to_arrow(texts, TEXT))

    @classmethod
    def repeated(cls, text: str, count: int) -> Texts:
        """Return ``count`` times the same text."""
        return cls(pa.chunked_array([pa.repeat(pa.scalar(text, TEXT), count)]))

    @classmethod
    def numbered(cls, prefix: str, count: int) -> Texts:
        """Return ``prefix`` followed by 1, 2, … ``count``."""
        numbers = pa.chunked_array([pa.array(np.arange(1, count + 1)).cast(TEXT)])
        return cls(
            pc.binary_join_element_wise(pa.scalar(prefix, TEXT), numbers, pa.scalar("", TEXT))
        )

    @classmethod
    def joined(cls, columns: Sequence[Texts]) -> Texts:
        """Return one column after the other; nothing is copied."""
        return cls(pa.chunked_array([c for one in columns for c in one.arrow.chunks], TEXT))

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Texts(self.arrow.slice(start, max(stop - start, 0)))
            return self.take(np.arange(start, stop, step))
        return self.arrow[int(range(len(self))[index])].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            yield from self.arrow.slice(start, CHUNK).to_pylist()

    def __repr__(self) -> str:
        return f"Texts({len(self)})"

    def take(self, indices: np.ndarray) -> Texts:
        """Return the texts at these places."""
        return Texts(take(self.arrow, indices))

    def codes(self) -> np.ndarray:
        """Return i64[N]: equal texts have equal numbers, counted by first occurrence."""
        encoded = self.arrow.dictionary_encode()
        codes = [chunk.indices.to_numpy() for chunk in encoded.chunks]
        return np.concatenate([np.zeros(0, np.int64), *codes], dtype=np.int64)

    def equal(self, text: str) -> np.ndarray:
        """Return which of the texts are this one: bool[N]."""
        return pc.equal(self.arrow, pa.scalar(text, TEXT)).to_numpy()

    def firsts(self) -> np.ndarray:
        """Return the place of each distinct text's first occurrence: i64[distinct], ascending."""
        return np.unique(self.codes(), return_index=True)[1]

    def distinct(self) -> Texts:
        """Return each text once, by first occurrence."""
        return Texts(pa.chunked_array([self.arrow.unique()]))


class Ragged(Sequence):
    """A column of lists: one flat array of all elements, cut by the lengths of the rows.

    ``ragged[3]`` is the list of row 3: a view of the flat array, or a tuple of texts.
    """

    def __init__(self, arrow: pa.ChunkedArray) -> None:
        self.arrow = arrow

    @classmethod
    def of(cls, flat: np.ndarray | Texts, lengths: np.ndarray) -> Ragged:
        """Cut ``flat`` into lists of these lengths."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        values = flat.arrow if isinstance(flat, Texts) else flat
        whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values)
        return cls(pa.chunked_array([pa.LargeListArray.from_arrays(pa.array(offsets), whole)]))

    @classmethod
    def one_each(cls, flat: np.ndarray | Texts) -> Ragged:
        """Return lists of one element each."""
        return cls.of(flat, np.ones(len(flat), np.int64))

    @classmethod
    def empty(cls, count: int, kind: type) -> Ragged:
        """Return ``count`` empty lists of numbers of this kind, like ``np.float32``."""
        return cls.of(np.zeros(0, kind), np.zeros(count, np.int64))

    @classmethod
    def joined(cls, columns: Sequence[Ragged], kind: type) -> Ragged:
        """Return one column of numbers of this kind after the other; nothing is copied."""
        chunks = [chunk for column in columns for chunk in column.arrow.chunks]
        return cls(pa.chunked_array(chunks, pa.large_list(pa.from_numpy_dtype(kind))))

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, index: int):
        place = range(len(self))[index]
        number = bisect.bisect_right(self._firsts, place) - 1
        offsets, flat = self._parts[number]
        row = place - self._firsts[number]
        found = flat[offsets[row] : offsets[row + 1]]
        return tuple(found) if isinstance(found, Texts) else found

    def __repr__(self) -> str:
        return f"Ragged({len(self)})"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """i64[N], the number of elements of each row."""
        parts = [np.diff(chunk.offsets.to_numpy()) for chunk in self.arrow.chunks]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    @functools.cached_property
    def flat(self) -> np.ndarray | Texts:
        """All elements, row after row."""
        flat = pa.chunked_array(
            [chunk.flatten() for chunk in self.arrow.chunks], self.arrow.type.value_type
        )
        return Texts(flat) if flat.type == TEXT else flat.to_numpy()

    def tolist(self) -> list[tuple]:
        """Return all lists as tuples of Python values."""
        return [row for chunk in self.arrow.chunks for row in to_python(chunk)]

    def take(self, indices: np.ndarray) -> Ragged:
        """Return the lists at these places."""
        return Ragged(take(self.arrow, indices))

    def sums(self) -> np.ndarray:
        """Return the sum of each list of numbers, f64[N]; 0 for an empty one."""
        found, some = np.zeros(len(self)), self.lengths > 0
        starts = (np.cumsum(self.lengths) - self.lengths)[some]
        found[some] = np.add.reduceat(self.flat, starts, dtype=np.float64) if some.any() else 0
        return found

    @property
    def matrix(self) -> np.ndarray:
        """[N, C], for N lists of C numbers each.

        Raises:
            ValueError: the lists have different lengths.
        """
        width = int(self.lengths.max(initial=0))
        if (self.lengths != width).any():
            raise ValueError(f"lists of {self.lengths.min()} to {width} numbers are no matrix")
        return self.flat.reshape(len(self), width)

    @functools.cached_property
    def _firsts(self) -> list[int]:
        """The first row of each chunk."""
        chunks = self.arrow.chunks
        return [0, *itertools.accumulate(len(chunk) for chunk in chunks)][: len(chunks)]

    @functools.cached_property
    def _parts(self) -> list[tuple[np.ndarray, Any]]:
        """The offsets and the elements of each chunk."""
        parts = []
        for chunk in self.arrow.chunks:
            offsets = chunk.offsets.to_numpy()
            flat = chunk.flatten()
            texts = flat.type == TEXT
            values = Texts(pa.chunked_array([flat])) if texts else flat.to_numpy()
            parts.append((offsets - offsets[0], values))
        return parts


Column = np.ndarray | Texts | Ragged


def view(arrow: pa.ChunkedArray) -> Column:
    """Return what a reader of the column gets: numbers as a read-only array."""
    if pa.types.is_large_list(arrow.type):
        return Ragged(arrow)
    if arrow.type == TEXT:
        return Texts(arrow)
    numbers = arrow.to_numpy()
    numbers.flags.writeable = False
    return numbers


def to_arrow(values: Any, kind: pa.DataType) -> pa.ChunkedArray:
    """Store a column: a `Column`, an Arrow array, or a sequence of Python values.

    Raises:
        UnicodeEncodeError: a text has a lone surrogate.
        OverflowError: a whole number is too large.
        TypeError: the column is of another kind.
    """
    if isinstance(values, Texts | Ragged):
        values = values.arrow
    if isinstance(values, pa.Array):
        values = pa.chunked_array([values])
    if isinstance(values, pa.ChunkedArray):
        if values.type != kind:
            raise TypeError(f"a column of {values.type}, expected {kind}")
        return values
    if isinstance(values, np.ndarray) and not pa.types.is_large_list(kind):
        return pa.chunked_array([pa.array(values, kind)])
    if pa.types.is_large_list(kind):
        return pa.chunked_array([_lists(values, kind.value_type)])
    return pa.chunked_array([pa.array(values, kind)])


def _lists(values: Sequence[Sequence], kind: pa.DataType) -> pa.LargeListArray:
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    items = itertools.chain.from_iterable(values)
    if kind == TEXT:
        flat = pa.array(list(items), kind)
    else:
        flat = pa.array(np.fromiter(items, kind.to_pandas_dtype(), offsets[-1]))
    return pa.LargeListArray.from_arrays(pa.array(offsets), flat)


def to_python(arrow: pa.Array) -> Sequence[Any]:
    """Return the values as Python objects; lists are tuples."""
    if pa.types.is_large_list(arrow.type):
        ends = (arrow.offsets.to_numpy() - arrow.offsets[0].as_py()).tolist()
        flat = to_python(arrow.flatten())
        return [tuple(flat[start:end]) for start, end in itertools.pairwise(ends)]
    if arrow.type == TEXT:
        return arrow.to_pylist()
    return arrow.to_numpy(zero_copy_only=False).tolist()


def take(arrow: pa.ChunkedArray, indices: np.ndarray) -> pa.ChunkedArray:
    """Return the values at these places, read only from the chunks that have them."""
    indices = np.asarray(indices, np.int64)
    if not len(indices):
        return arrow.slice(0, 0)
    if not 0 <= indices.min() <= indices.max() < len(arrow):
        raise IndexError(f"places {indices.min()} to {indices.max()} of {len(arrow)} rows")
    firsts = np.array([0, *itertools.accumulate(map(len, arrow.chunks))])
    number = np.searchsorted(firsts, indices, side="right") - 1
    order = np.argsort(number, kind="stable")
    used, starts = np.unique(number[order], return_index=True)
    parts = [
        arrow.chunk(int(n)).take(pa.array(indices[places] - firsts[n]))
        for n, places in zip(used, np.split(order, starts[1:]), strict=True)
    ]
    if len(parts) < 2:
        return pa.chunked_array(parts, arrow.type)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.chunked_array([pa.concat_arrays(parts).take(pa.array(back))])


def pair_codes(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return a number for each pair of codes, i64[N]: the same for the same pair."""
    return one * (int(other.max(initial=0)) + 1) + other


def first_shared(groups: Sequence[Texts]) -> tuple[int, int, int] | None:
    """Find the first text that an earlier group has too.

    Returns:
        (its group, its place in it, the group that has it first), or None.
    """
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    codes = Texts.joined(groups).codes()
    first = np.zeros(codes.max(initial=-1) + 1, np.int64)
    first[codes[::-1]] = owner[::-1]
    shared = first[codes] != owner
    if not shared.any():
        return None
    place = int(np.argmax(shared))
    group = int(owner[place])
    return group, place - int(np.searchsorted(owner, group)), int(first[codes[place]])
