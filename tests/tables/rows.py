"""A row type with a field of every kind, for tests of tables."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    text: str
    number: int
    share: float
    flag: bool
    ids: tuple[int, ...]
    shares: tuple[float, ...]
    halves: tuple[np.float32, ...]
    texts: tuple[str, ...]


def row(n: int) -> Row:
    """Row ``n``, which tells its number."""
    return Row(
        text=f"Zeile {n}: ünïcödé 🍋 \n\0",
        number=-(2**62) + n,
        share=0.1 + n,
        flag=n % 2 == 0,
        ids=tuple(range(n % 5)),
        shares=(0.1, 1e-320, -1e308)[: n % 4],
        halves=(0.5, -0.25)[: n % 3],
        texts=("", "b ä", "c\0")[: n % 4],
    )
