"""Every value that crosses a stage or a jit boundary. Imports nothing of this package.

Axis legend: the letters of every docstring, einsum and ``chex.Dimensions`` ::

    B  prompts in a batch      P  prompt tokens (left-padded)     D  model width     H  head width
    K  responses per prompt    R  response tokens (right-padded)  N  query heads     F  mlp width
    E* = [B, K] or [B]         T = P + R                          G  key/value heads V  vocabulary

Values on the host are frozen dataclasses; values on a device are NamedTuples of arrays.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

Params = dict[str, jax.Array]
"""Parameters: one flat dict from path (``"layers/q_proj/kernel"``) to array. Leaves whose path
starts with ``layers/`` carry all layers stacked on their first axis."""


class UserError(Exception):
    """What the user can mend: one line that names the thing and the way out. Exit code 2."""

    @classmethod
    def unknown(cls, said: str, name: str, known: Iterable[str]) -> UserError:
        """``said`` and the name that was probably meant, or all that there are."""
        known = tuple(known)
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        return cls(f"{said}: {hint}")


def some_of(names: Sequence[str]) -> str:
    """The names for one line: the first eight, and how many more."""
    shown = ", ".join(names[:8]) or "none"
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


class Finished(Exception):
    """All that ``--stages`` allows is done."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved what it needs to go on."""


# ------------------------------------------------------------------ device values


class Tokens(NamedTuple):
    """A batch of prompts with their responses.

    Alignment, stated once: ``logp[..., t]`` is log π of ``response[..., t]``, produced by the
    position before it; ``mask`` is 1 on response tokens, the end token included. Masks come from
    lengths, never from ``token == pad``.
    """

    prompt: jax.Array  # i32[B, P], left-padded
    prompt_mask: jax.Array  # f32[B, P]
    response: jax.Array  # i32[E*, R], right-padded
    mask: jax.Array  # f32[E*, R]


class Branches(NamedTuple):
    """How a sequence ``[prompt | response 1 | … | response K]`` is laid out: where it branches."""

    prompt: int  # P, padding included
    response: int  # R of each


class Batch(NamedTuple):
    """One training batch: tokens and the stored annotations of the same rows."""

    tokens: Tokens
    ref_logp: jax.Array  # f32[E*, R]
    reward: jax.Array  # f32[E*]
    advantage: jax.Array  # f32[E*], clamped at 0


class Targets(NamedTuple):
    """What an objective reads besides the policy's own ``logp``; none of it carries a gradient."""

    mask: jax.Array  # f32[E*, R], 1 on response tokens
    ref_logp: jax.Array  # f32[E*, R], log π_ref of the same tokens
    reward: jax.Array  # f32[E*]
    advantage: jax.Array  # f32[E*], max(R − V, 0)


# ------------------------------------------------------------------ host values: data


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with the responses that the data has for it (at least one)."""

    id: str
    prompt: str
    responses: tuple[str, ...]
    source: str
    rewards: tuple[
        float, ...
    ] = ()  # one per response where the data has stored rewards, else empty


@dataclasses.dataclass(frozen=True)
class Splits:
    """Result of ``load``: no prompt occurs in two splits."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    notes: tuple[str, ...]  # what was dropped or merged on the way, counted, one sentence each


@dataclasses.dataclass(frozen=True)
class Scored:
    """One (prompt, response) row with its reward. Rows of one prompt share ``example_id``."""

    example_id: str
    prompt: str
    response: str
    source: str
    components: tuple[float, ...]  # unweighted, in the order of ``component_names``; may be empty
    reward: float  # Σ weight · component, or the stored reward


@dataclasses.dataclass(frozen=True)
class ScoredSplits:
    """Result of ``score``."""

    train: tuple[Scored, ...]
    validation: tuple[Scored, ...]
    test: tuple[Scored, ...]
    component_names: tuple[str, ...]
    max_reward: float  # the largest reward possible: bound of the value head
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Answers:
    """Result of ``generate``: the reference's scored answers to the validation prompts."""

    rows: tuple[Scored, ...]


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One training row as the policy step reads it: tokens and the frozen models' annotations."""

    example_id: str
    source: str
    prompt_text: str
    response_text: str
    prompt: tuple[int, ...]  # token ids
    response: tuple[int, ...]  # token ids, end token included unless the row was cut
    ref_logp: tuple[float, ...]  # one per response token; empty if the objective does not read it
    reward: float
    value: float  # V(x); 0 if the objective does not read the advantage
    advantage: float  # R − V(x), not clamped
    kept: bool


@dataclasses.dataclass(frozen=True)
class TrainingTable:
    """Result of ``select``."""

    rows: tuple[Annotated, ...]


# ------------------------------------------------------------------ host values: fitted things


@dataclasses.dataclass(frozen=True)
class Validation:
    """One look at the policy during training."""

    step: int
    metric: str
    score: float  # larger is better


@dataclasses.dataclass(frozen=True)
class Curve:
    """One logged metric over the optimizer steps of a stage."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What all optimizer steps of a stage took; looks at the validation set are not in it."""

    tokens: int = 0  # real tokens that were trained on, as often as they were
    flops: float = 0.0  # in closed form (`flops`), padding included
    seconds: float = 0.0  # of wall clock, over all processes that worked on it


@dataclasses.dataclass(frozen=True)
class Policy:
    """Result of the fits of a policy: the trained leaves of the best step."""

    trained: Params
    step: int
    validations: tuple[Validation, ...]
    curves: tuple[Curve, ...]
    cost: Cost = Cost()


@dataclasses.dataclass(frozen=True)
class ValueAudit:
    """How well the value head predicts rows it was not fitted on (out-of-fold predictions)."""

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    mse: float
    mse_of_mean: float  # of always predicting the mean reward of the fitting folds
    mse_of_length: float  # of a straight line in the prompt length, fitted on the fitting folds
    epochs: int  # chosen on held-out error


@dataclasses.dataclass(frozen=True)
class Value:
    """Result of ``fit_value``."""

    params: Params
    max_value: float
    audit: ValueAudit


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap percentile interval."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class SystemScores:
    """The test-set figures of one system: the data's own responses, the reference or the policy."""

    name: str  # "data", "reference", "policy"
    reward: Interval | None  # None where nothing can score a generation
    components: tuple[Interval, ...]
    distinct: tuple[Interval, Interval, Interval]  # distinct-1/2/3
    length: Interval  # whitespace tokens


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The part of the test prompts that has one source."""

    name: str  # the source
    prompts: int
    systems: tuple[SystemScores, ...]
    difference: Interval | None  # policy − reference, paired, of the total reward


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of ``evaluate``."""

    data: tuple[Scored, ...]
    reference: tuple[Scored, ...]
    policy: tuple[Scored, ...]
    component_names: tuple[str, ...]
    systems: tuple[SystemScores, ...]
    differences: tuple[Interval, ...]  # policy − reference, paired; components, then total reward
    sets: tuple[TestSet, ...] = ()  # by source, in the order of the test prompts
    kl: Interval | None = None  # `logprobs.response_kl` over the policy's answers, in nats


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of ``report``: the files it wrote, relative to the stage's folder."""

    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What a run was, for the report: nothing in it is computed from the results."""

    objective: str
    hyper_parameters: tuple[tuple[str, float], ...]  # of the objective: clip, beta, ...
    task: str
    model: str
    config_json: str  # the whole config, indented
    versions: tuple[tuple[str, str], ...]  # (package, version)

    @property
    def fingerprint(self) -> tuple:
        """What makes a finished report stale; another package version does not."""
        return (self.objective, self.hyper_parameters, self.task, self.model)


# ------------------------------------------------------------------ host values: descriptions


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """One reward component of a task.

    ``scorer`` is a key of ``rewards.reward.SCORERS``; ``template`` makes the scorer's text from
    ``{prompt}`` and ``{response}``; every score lies in [0, bound]. Components that a model scores
    are named in ``config.reward_models`` instead: any task can have them.
    """

    name: str
    scorer: str
    template: str
    bound: float


def stripped(text: str) -> str:
    """A response that is all that was generated, without white space at its ends."""
    return text.strip()


def one_turn(prompt: str) -> tuple[str, ...]:
    """A prompt that is what one person says."""
    return (prompt,)


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything that is particular to one task. Nobody outside ``tasks/`` knows a task's name."""

    name: str
    load: Callable[[Any], Splits]  # config.task -> splits
    files: Callable[[Any], tuple[Path, ...]]  # config.task -> what ``load`` reads
    template: str  # with "{prompt}": what the model reads; special tokens in it are parsed
    stop: tuple[str, ...]  # texts whose tokens end a generated response
    rewards: tuple[RewardSpec, ...]
    clean: Callable[[str], str] = stripped  # the text that was generated -> the response
    # a prompt -> what was said, in turn, by the person first and last
    turns: Callable[[str], tuple[str, ...]] = one_turn


def never() -> bool:
    """Does not ask to stop."""
    return False


def silent(line: str) -> None:
    """Drops the line."""


class Watch(NamedTuple):
    """How a long loop shows where it is, and what may stop it."""

    label: str  # what is being done
    say: Callable[[str], None] = silent  # one line for the person who watches
    stopping: Callable[[], bool] = never  # True once the loop should end


class StageContext(NamedTuple):
    """What a running stage may use besides its inputs."""

    folder: Path  # the stage's own folder; survives an interruption
    stopping: Callable[[], bool]  # True once the run was asked to stop
    say: Callable[[str], None]  # one line for the person who watches
    tensorboard: bool

    def watch(self, label: str) -> Watch:
        """For a loop of this stage."""
        return Watch(label, self.say, self.stopping)
