"""The values passed between stages and across jit boundaries.

Axis letters, used in every docstring, einsum and ``chex.Dimensions`` ::

    B  prompts in a batch      P  prompt tokens                   D  model width     H  head width
    K  responses per prompt    R  response tokens (right-padded)  N  query heads     F  mlp width
    E* = [B, K] or [B]         T  tokens of a row                 G  key/value heads V  vocabulary

Host values are frozen dataclasses, rows of data are a `Table` of one, and device values are
NamedTuples of arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

if TYPE_CHECKING:
    from alol_jax.tables.table import Table

Params = dict[str, jax.Array]
"""Parameters: a flat dict from path (``"layers/q_proj/kernel"``) to array. Leaves whose path
starts with ``layers/`` have all layers stacked on their first axis."""


# device values


class Grid(NamedTuple):
    """Examples side by side in the rows of a grid, with little padding.

    An example is a prompt with its responses, ``[prompt | response 1 | … | response K]``, in one
    row. A response attends to the prompt and to itself, and nothing attends to another example. A
    row of T tokens has S slots for examples and M places for response tokens. What is real follows
    from lengths, never from ``id == pad``.
    """

    ids: jax.Array  # i32[rows, T]
    segment: jax.Array  # i32[rows, T], the slot of the token's example + 1; 0 on padding
    branch: jax.Array  # i32[rows, T], 0 in the prompt, k in response k = 1 … K
    position: jax.Array  # i32[rows, T], from 0 in each example; every response goes on from P
    prompt: jax.Array  # i32[rows, S], tokens of each prompt; 0 in an empty slot
    before: jax.Array  # i32[rows, M], the column whose state predicts a response token
    target: jax.Array  # i32[rows, M], the response token
    real: jax.Array  # f32[rows, M], 1 where there is one
    place: jax.Array  # i32[rows, M], where it stands in the flattened [E*, R] of its batch


class Prompts(NamedTuple):
    """B prompts to answer, side by side. Rows and prompts are in D groups, one per device."""

    ids: jax.Array  # i32[rows, T]
    segment: jax.Array  # i32[rows, T], as in `Grid`
    position: jax.Array  # i32[rows, T]
    source: jax.Array  # i32[D, B/D, P], index into the rows of the group; −1 before a prompt


class Targets(NamedTuple):
    """What an objective reads besides the policy's ``logp``. Carries no gradient."""

    mask: jax.Array  # f32[E*, R], 1 on response tokens, the end token included
    ref_logp: jax.Array  # f32[E*, R], log π_ref of the same tokens
    reward: jax.Array  # f32[E*]
    advantage: jax.Array  # f32[E*], max(R − V, 0)


class Work(NamedTuple):
    """What is computed for a batch, counted on the host."""

    tokens: int = 0  # real ones
    computed: int = 0  # with padding
    forward: float = 0.0  # FLOPs of a forward pass, in closed form (`flops`), with padding
    flops: float = 0.0  # of an optimizer step

    def metrics(self) -> dict[str, float]:
        """What is logged of it."""
        return {"tokens": self.tokens, "computed_tokens": self.computed, "flops": self.flops}


class Batch(NamedTuple):
    """What one optimizer step trains on: B items, in as many grids as they need."""

    grids: tuple[Grid, ...]
    targets: Any  # of all items: what the loss reads besides what the model computes
    work: Work


# host values: data


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
class Splits:
    """Result of ``load``. No prompt is in two splits."""

    train: Table[Example]
    validation: Table[Example]
    test: Table[Example]
    notes: tuple[str, ...]  # what was dropped or merged, with counts; one sentence each


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
    reward: float  # Σ weight · component, or the stored reward


@dataclasses.dataclass(frozen=True)
class ScoredSplits:
    """Result of ``score``."""

    train: Table[Scored]
    validation: Table[Scored]
    test: Table[Scored]
    component_names: tuple[str, ...]
    max_reward: float  # the largest possible reward, which bounds the value head
    notes: tuple[str, ...]


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


# host values: fits and results


@dataclasses.dataclass(frozen=True)
class Validation:
    """One evaluation of the policy during training."""

    step: int
    metric: str
    score: float  # larger is better


@dataclasses.dataclass(frozen=True)
class Curve:
    """A logged metric over the optimizer steps of a stage."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of all optimizer steps of a stage, without validation."""

    tokens: int = 0  # real tokens trained on, counted each time
    computed: int = 0  # with padding
    flops: float = 0.0  # in closed form (`flops`), including padding
    seconds: float = 0.0  # wall-clock time, summed over interruptions

    @property
    def real(self) -> float:
        """The share of the computed tokens that are real."""
        return self.tokens / self.computed if self.computed else 0.0

    def summary(self) -> str:
        """Describe it in one line for the user."""
        rate = self.tokens / max(self.seconds, 1e-9)
        return f"real tokens {self.real:.0%}, {rate:.0f} real tokens/s"


@dataclasses.dataclass(frozen=True)
class Policy:
    """Result of fitting a policy or the reference: the trained leaves of the best step."""

    trained: Params
    step: int
    validations: tuple[Validation, ...]
    curves: tuple[Curve, ...]
    cost: Cost = Cost()


@dataclasses.dataclass(frozen=True)
class ValueAudit:
    """How well the value head predicts held-out rows (out-of-fold predictions)."""

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    mse: float
    mse_of_mean: float  # of predicting the mean reward of the training folds
    mse_of_length: float  # of a linear fit to prompt length on the training folds
    epochs: int  # with the lowest held-out error


@dataclasses.dataclass(frozen=True)
class Value:
    """Result of ``fit_value``."""

    params: Params
    max_value: float
    audit: ValueAudit


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap percentile interval."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class SystemScores:
    """Test-set results of one system: the data's responses, the reference or the policy."""

    name: str  # "data", "reference", "policy"
    reward: Interval | None  # None without a scorer for generated responses
    components: tuple[Interval, ...]
    distinct: tuple[Interval, Interval, Interval]  # distinct-1/2/3
    length: Interval  # in whitespace-separated words


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The test prompts of one source."""

    name: str  # the source
    prompts: int
    systems: tuple[SystemScores, ...]
    difference: Interval | None  # policy − reference, paired, in total reward


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of ``evaluate``."""

    data: Table[Scored]
    reference: Table[Scored]
    policy: Table[Scored]
    component_names: tuple[str, ...]
    systems: tuple[SystemScores, ...]
    differences: tuple[Interval, ...]  # policy − reference, paired; components, then total reward
    sets: tuple[TestSet, ...] = ()  # by source, in the order of the test prompts
    kl: Interval | None = None  # of the policy's answers, in nats


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of ``report``: the files written, relative to the stage's folder."""

    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A description of the run for the report. Nothing in it depends on the results."""

    objective: str
    hyper_parameters: tuple[tuple[str, float], ...]  # of the objective: clip, beta, …
    task: str
    model: str
    config_json: str  # the whole config, indented
    versions: tuple[tuple[str, str], ...]  # (package, version)

    @property
    def fingerprint(self) -> tuple:
        """The fields that make a finished report stale when they change; versions do not."""
        return (self.objective, self.hyper_parameters, self.task, self.model)


# host values: descriptions


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """One reward component of a task.

    ``scorer`` is a key of ``rewards.reward.SCORERS``. ``template`` builds the text to score from
    ``{prompt}`` and ``{response}``. Every score is in [0, bound]. Reward models are not listed
    here but in ``config.reward_models``, where any task can use them.
    """

    name: str
    scorer: str
    template: str
    bound: float


def stripped(text: str) -> str:
    """Return the generated text without leading and trailing whitespace."""
    return text.strip()


def one_turn(prompt: str) -> tuple[str, ...]:
    """Return the prompt as a single turn of the person."""
    return (prompt,)


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything specific to one task. Only ``tasks/`` knows the names of tasks."""

    name: str
    load: Callable[[Any], Splits]  # config.task -> splits
    files: Callable[[Any], tuple[Path, ...]]  # config.task -> what ``load`` reads
    template: str  # what the model reads, with "{prompt}"; special tokens in it are parsed
    stop: tuple[str, ...]  # stop sequences: texts whose tokens end a generated response
    rewards: tuple[RewardSpec, ...]
    clean: Callable[[str], str] = stripped  # generated text -> response
    # prompt -> the turns of the conversation; the first and the last are the person's
    turns: Callable[[str], tuple[str, ...]] = one_turn


def never() -> bool:
    """Never ask to stop."""
    return False


def silent(line: str) -> None:
    """Discard the line."""


class Watch(NamedTuple):
    """How a long loop reports its progress, and when it should stop."""

    label: str  # what the loop does
    say: Callable[[str], None] = silent  # prints one line for the user
    stopping: Callable[[], bool] = never  # True once the loop should stop


class StageContext(NamedTuple):
    """What a running stage may use besides its inputs."""

    folder: Path  # the stage's own folder, kept when the run is interrupted
    stopping: Callable[[], bool]  # True once the run was asked to stop
    say: Callable[[str], None]  # prints one line for the user
    tensorboard: bool

    def watch(self, label: str) -> Watch:
        """Return a `Watch` for a loop of this stage."""
        return Watch(label, self.say, self.stopping)
