"""Data as it passes from stage to stage, up to the training table."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alol_jax.types.agreement import Agreement

if TYPE_CHECKING:
    from alol_jax.tables.table import Table


class Limits(NamedTuple):
    """The most tokens of a prompt and of a response; longer ones are truncated."""

    prompt: int
    response: int


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and its responses in the data (at least one): a row of `Splits`."""

    id: str
    prompt: str
    responses: tuple[str, ...]
    source: str
    rewards: tuple[float, ...] = ()  # stored rewards, one per response; empty if there are none


@dataclasses.dataclass(frozen=True)
class Gold:
    """The best responses to a prompt in the data."""

    prompt: str
    responses: tuple[str, ...]


_READ_AT = re.compile(r"(\S+): read at commit ([0-9a-f]{40})\.")


def read_at(name: str, commit: str) -> str:
    """Return the note that a data set of the hub was read at this commit."""
    return f"{name}: read at commit {commit}."


def _no_gold() -> Table[Gold]:
    from alol_jax.tables.table import Table  # only whoever has tables needs pyarrow

    return Table.of((), Gold)


@dataclasses.dataclass(frozen=True)
class Splits:
    """Result of ``load``. No prompt is in two splits."""

    train: Table[Example]
    validation: Table[Example]
    test: Table[Example]
    notes: tuple[str, ...]  # what was dropped or merged, with counts; one sentence each
    # of the training prompts, if ``train`` has other responses than the data
    gold: Table[Gold] = dataclasses.field(default_factory=_no_gold)

    @property
    def commits(self) -> dict[str, str]:
        """The commits that were read of data sets of the hub, by the names in the config."""
        found = map(_READ_AT.fullmatch, self.notes)
        return {match[1]: match[2] for match in found if match}


@dataclasses.dataclass(frozen=True)
class Scored:
    """One (prompt, response) row and its reward. Rows of one prompt share ``example_id``.

    The columns of a ``Table[Scored]`` of N rows with C components: texts, ``components`` a `Ragged`
    of f64[C], ``reward`` f64[N].
    """

    example_id: str
    prompt: str
    response: str
    source: str
    components: tuple[float, ...]  # unweighted, in the order of ``component_names``; may be empty
    reward: float  # Σ weight · component, or the stored reward; transformed


@dataclasses.dataclass(frozen=True)
class RewardTransform:
    """What is done to a reward before anything learns from it (`rewards.transform`).

    The numbers are fitted to the training rows.
    """

    name: str = "as_is"
    clip: tuple[float, ...] = ()  # (low, high), before all else; empty for none
    shift: float = 0.0
    scale: float = 1.0
    knots: tuple[float, ...] = ()  # of rank: rewards, rising
    shares: tuple[float, ...] = ()  # of rank: the percentile of each knot, from 0 to 1
    percentiles: tuple[float, ...] = ()  # 0 to 100 of the training rewards as they were


@dataclasses.dataclass(frozen=True)
class ScoredSplits:
    """Result of ``score``."""

    train: Table[Scored]
    validation: Table[Scored]
    test: Table[Scored]
    component_names: tuple[str, ...]
    max_reward: float  # the largest reward that is possible or stored; bounds the value head
    notes: tuple[str, ...]
    # of the validation and test prompts, and of the training prompts if the reward reads them
    gold: Table[Gold] = dataclasses.field(default_factory=_no_gold)
    min_reward: float = 0.0  # the smallest one
    transform: RewardTransform = RewardTransform()  # of the rows' rewards
    # of what the scorers give an answer; another one where they did not give the rows' rewards
    of_answers: RewardTransform = RewardTransform()
    agreement: Agreement | None = None  # of the scorers with the stored rewards of the rows


@dataclasses.dataclass(frozen=True)
class Answers:
    """Result of ``generate``: the reference's scored answers to the validation prompts."""

    rows: Table[Scored]


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One training row for the policy: tokens and the annotations of the frozen models.

    The columns of a ``Table[Annotated]`` of N rows: texts, ``prompt`` and ``response`` `Ragged` of
    i32, ``ref_logp`` `Ragged` of f32, ``reward``, ``value`` and ``advantage`` f64[N], ``kept``
    bool[N].
    """

    example_id: str
    source: str
    prompt_text: str
    response_text: str
    prompt: tuple[int, ...]  # token ids
    response: tuple[int, ...]  # token ids, with the end token unless the response was truncated
    ref_logp: tuple[np.float32, ...]  # one per response token; empty if unused
    reward: float
    value: float  # V(x); 0 if the objective does not use the advantage
    advantage: float  # R − V(x), not clamped
    kept: bool


@dataclasses.dataclass(frozen=True)
class TrainingTable:
    """Result of ``select``."""

    rows: Table[Annotated]
