"""Results of fits, of the evaluation and of the report."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from alol_jax.types.agreement import Agreement, Interval
from alol_jax.types.arrays import Params
from alol_jax.types.data import Scored

if TYPE_CHECKING:
    from alol_jax.tables.table import Table


@dataclasses.dataclass(frozen=True)
class Validation:
    """One evaluation of the policy during training."""

    step: int
    metric: str
    score: float  # larger is better
    kl: float | None = None  # mean KL of the answers to the reference, in nats; None: not measured


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
    min_value: float = 0.0


@dataclasses.dataclass(frozen=True)
class Distilled:
    """Result of ``distil``: the head of a scorer that was fitted to the stored rewards."""

    head: Params
    epoch: int
    agreement: Agreement


@dataclasses.dataclass(frozen=True)
class SystemScores:
    """Test-set results of one system: the data's responses, the reference or the policy."""

    name: str  # "data", "reference", "policy"
    reward: Interval | None  # None without a scorer for generated responses
    components: tuple[Interval, ...]
    distinct: tuple[Interval, Interval, Interval]  # distinct-1/2/3
    length: Interval  # in whitespace-separated words
    # in the order of ``measure_names``; None for "data" where they compare with its responses
    measures: tuple[Interval | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class StoredMeasure:
    """A measure of reference and policy by the stored rewards of the test rows."""

    name: str
    rests_on: str  # how many prompts, pairs or rows
    reference: Interval
    policy: Interval
    difference: Interval  # policy − reference, paired by prompt


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The test prompts of one source."""

    name: str  # the source
    prompts: int
    systems: tuple[SystemScores, ...]
    difference: Interval | None  # policy − reference, paired, in total reward
    stored: tuple[StoredMeasure, ...] = ()  # as of `Evaluation`; empty if there is one source


@dataclasses.dataclass(frozen=True)
class PromptMeasures:
    """What the stored rewards say of the answers to one test prompt (`reports.stored_rewards`)."""

    example_id: str
    reference: tuple[float, ...]  # in the order of ``Evaluation.stored``
    policy: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ResponseLogps:
    """log π of one response; a column of f32 lists."""

    logp: tuple[np.float32, ...]  # one per token


@dataclasses.dataclass(frozen=True)
class OnTestRows:
    """Result of ``evaluate_reference``: a model's answers to test prompts, log π of the rows."""

    answers: Table[Scored]  # its likeliest answer to each prompt
    # of every response; empty if the scorers of the answers gave the rewards of the rows
    logps: Table[ResponseLogps]


def _no_measures() -> Table[PromptMeasures]:
    from alol_jax.tables.table import Table

    return Table.of((), PromptMeasures)


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
    measure_names: tuple[str, ...] = ()  # of ``config.evaluate.measures``
    # by the stored rewards; empty if the scorers of the answers gave the rewards of the rows
    stored: tuple[StoredMeasure, ...] = ()
    by_prompt: Table[PromptMeasures] = dataclasses.field(default_factory=_no_measures)
    agreement: Agreement | None = None  # of the answers' scorers with the stored rewards


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
    # what was read of repositories on the hub: (name in the config, commit)
    commits: tuple[tuple[str, str], ...] = ()
    drops: bool = True  # whether the policy was not trained on rows with A ≤ 0

    @property
    def fingerprint(self) -> tuple:
        """The fields that make a finished report stale when they change; versions and commits
        do not."""
        return (self.objective, self.hyper_parameters, self.task, self.model)
