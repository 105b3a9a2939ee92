"""How well two sources of rewards agree, and intervals."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap percentile interval."""

    mean: float
    low: float
    high: float

    def percent(self) -> str:
        """Write a share as ``73% [63%, 82%]``."""
        return f"{self.mean:.0%} [{self.low:.0%}, {self.high:.0%}]"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well a scorer agrees with the stored rewards, on rows that neither was fitted to."""

    scorer: str
    rows: int
    pairs: int  # of rows with different rewards: of one prompt, or, without any, of all rows
    within: bool  # the pairs are of one prompt
    order: Interval  # the share of the pairs that the scorer orders as the rewards do
    by_length: float  # the same share if the longer response is always preferred
    pearson: float | None  # None where one of the two does not vary
    spearman: float | None
    bias: float  # mean scorer − mean reward, as the scorer gives it
    remaining: float  # the same once its scores are on the scale of the rewards
    mse: float  # mean squared error on that scale
    variance: float  # that of always predicting the mean reward of these rows

    def summary(self) -> str:
        """Describe it in one line for the user."""
        of = "of one prompt" if self.within else "of rows"
        correlation = "" if self.pearson is None else f", correlation {self.pearson:.2f}"
        return (
            f"{self.scorer} orders {self.order.percent()} of {self.pairs} held-out pairs {of} as "
            f"the stored rewards do (the longer one first: {self.by_length:.0%}){correlation}"
        )
