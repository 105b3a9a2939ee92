"""Finished workdirs without any model: every stage is there, with results of a few random rows."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from alol_jax.errors import Finished
from alol_jax.reports.compare.rows import Fit, RunResult
from alol_jax.reports.statistics import bootstrap, distinct_interval, word_counts
from alol_jax.runs.workdir import Run
from alol_jax.tables.table import Table
from alol_jax.types import (
    Cost,
    Curve,
    Evaluation,
    Example,
    Interval,
    Policy,
    RewardSpec,
    Scored,
    ScoredSplits,
    Splits,
    SystemScores,
    Task,
    TestSet,
    TrainingTable,
    Validation,
)
from configs import common
from tests.tiny_run import annotated_rows, scored_table

STAGES = {
    "load": 1,
    "score": 2,
    "fit_reference": 3,
    "select": 6,
    "fit_policy": 7,
    "fit_policy_online": 7,
    "evaluate": 8,
}
PARTS = ("help_ful", "harm<less>")
SOURCES = ("base", "online")
PROMPTS = 12
DRAWS = 50
TASK = Task(
    name="toy",
    load=lambda options: None,
    files=lambda options: (),
    template="{prompt}",
    stop=("\n",),
    rewards=tuple(RewardSpec(name, "none", "{response}", 1.0) for name in PARTS),
)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Stands in for the opened rewards."""

    fingerprint: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Model:
    """Stands in for the language model."""

    fingerprint: Mapping[str, object]


def config_of(objective: str, *, seed: int = 0, policy_seed: int = 0, **fields):
    """The shared config; ``fields`` are set by dotted name with ``__`` for the dots."""
    config = common.get_config()
    config.seed, config.policy.seed = seed, policy_seed
    config.objective.name = objective
    config.evaluate.bootstrap = DRAWS
    config.rewards = ConfigDict(dict.fromkeys(PARTS, 1.0))
    config.task.limit = 0
    config.task.template = "{prompt}"
    config.model.path = "models/one"
    for name, value in fields.items():
        *sections, key = name.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[key] = value
    return config


def answers(seed: int, lift: float, *, prompts: int = PROMPTS) -> Table[Scored]:
    """A system's scored answers: a common difficulty of each prompt, and noise of the seed."""
    hard = np.random.default_rng(0).uniform(size=(prompts, 2))
    parts = hard + lift + 0.2 * np.random.default_rng(seed).normal(size=(prompts, 2))
    rows = (
        Scored(
            f"t{i}",
            f"prompt {i}",
            f"answer {i % (seed % 5 + 2)} of {seed}",
            SOURCES[i % 2],
            tuple(map(float, row)),
            float(row.sum()),
        )
        for i, row in enumerate(parts)
    )
    return scored_table(rows)


def evaluated(policy: Table[Scored], reference: Table[Scored], seed: int) -> Evaluation:
    """The evaluation of these answers beside a fixed set of data responses, two to a prompt."""
    one, other = answers(90, 0.0, prompts=len(policy)), answers(91, 0.0, prompts=len(policy))
    pairs = zip(one, other, strict=True)
    data = scored_table(row for pair in pairs for row in pair)
    named = {"data": data, "reference": reference, "policy": policy}
    sets = []
    for source in dict.fromkeys(row.source for row in policy):
        mine = {n: [r for r in rows if r.source == source] for n, rows in named.items()}
        systems = tuple(_scores(name, rows, seed) for name, rows in mine.items())
        sets.append(TestSet(source, len(mine["policy"]), systems, None))
    gain = _columns(policy) - _columns(reference)
    return Evaluation(
        *(data, reference, policy, PARTS),
        systems=tuple(_scores(name, rows, seed) for name, rows in named.items()),
        differences=tuple(_interval(column, seed) for column in gain.T),
        sets=tuple(sets),
        kl=_interval(np.abs(gain[:, 0]), seed),
    )


def unscored(evaluation: Evaluation) -> Evaluation:
    """The same where nothing scores a generation."""
    blank = {
        name: scored_table(
            dataclasses.replace(row, components=(), reward=float("nan"))
            for row in getattr(evaluation, name)
        )
        for name in ("data", "reference", "policy")
    }
    systems = tuple(
        dataclasses.replace(system, reward=None, components=()) for system in evaluation.systems
    )
    return dataclasses.replace(
        evaluation, **blank, systems=systems, differences=(), sets=(), component_names=()
    )


def _columns(rows) -> np.ndarray:
    return np.array([(*row.components, row.reward) for row in rows])


def _interval(column: np.ndarray, seed: int) -> Interval:
    return bootstrap(column, draws=DRAWS, confidence=0.95, seed=seed)


def _scores(name: str, rows, seed: int) -> SystemScores:
    prompts = _columns(rows)
    if name == "data":
        prompts = prompts.reshape(-1, 2, 3).mean(1)
    *parts, total = (_interval(column, seed) for column in prompts.T)
    texts = [row.response for row in rows]
    options = {"draws": 20, "confidence": 0.95, "seed": seed}
    grams = tuple(distinct_interval(texts, n, **options) for n in (1, 2, 3))
    return SystemScores(name, total, tuple(parts), grams, _interval(word_counts(texts), seed))


def policy_of(seed: int, lift: float) -> Policy:
    """Curves and looks that rise towards ``lift``; no parameters to speak of."""
    noise = np.random.default_rng(seed).normal(size=60) * 0.02
    steps = tuple(range(1, 61))
    rise = np.linspace(0, lift, 60) + noise
    return Policy(
        {"leaf": np.full(3, seed, np.float32)},
        40,
        tuple(Validation(s, "mean validation reward", float(rise[s - 1])) for s in (20, 40, 60)),
        (
            Curve("loss", steps, tuple(map(float, 1 - rise))),
            Curve("kl_to_reference", steps, tuple(map(float, np.abs(rise)))),
        ),
        Cost(tokens=6000 + seed, computed=8000, flops=1.5e12, seconds=12.5 + seed),
    )


def run_result(
    objective: str,
    *,
    seed: int = 0,
    shared_seed: int = 0,
    lift: float = 0.1,
    workdir: str = "",
    updates: int = 1,
    evaluation: Evaluation | None = None,
    **settings,
) -> RunResult:
    """What is read of a run, without a workdir."""
    number = seed + sum(map(ord, objective))
    reference = answers(shared_seed + 70, 0.0)
    made = evaluation or evaluated(answers(number, lift), reference, shared_seed)
    policy = policy_of(number, lift)
    return RunResult(
        workdir=Path(workdir or f"runs/{objective}-{seed}-{shared_seed}"),
        objective=objective,
        seed=seed,
        shared_seed=shared_seed,
        settings={"model.path": "models/one", "objective.clip": 0.9} | settings,
        model="one",
        reference=f"reference {shared_seed}",
        draws=DRAWS,
        updates=updates,
        evaluation=made,
        fit=Fit(policy.step, policy.validations, policy.curves, policy.cost),
    )


def load(task, options, files, *, context) -> Splits:
    none = Table.of([], Example)
    return Splits(none, none, none, ())


def score(scoring, options, splits, *, context) -> ScoredSplits:
    none = scored_table([])
    return ScoredSplits(none, none, none, PARTS, 2.0, ())


def fit_reference(lm, options, seed, scored, *, context) -> Policy:
    return policy_of(0, 0.0)


def select(reference, *, context) -> TrainingTable:
    return TrainingTable(annotated_rows([]))


def _run(workdir: Path, config, until: str) -> Run:
    order = [*STAGES]
    return Run(
        workdir,
        STAGES,
        config,
        allowed=order[: order.index(until) + 1],
        redo=True,
        stopping=lambda: False,
        say=lambda line: None,
    )


def finish(
    workdir: Path,
    config,
    *,
    lift: float = 0.1,
    until: str = "evaluate",
    evaluation: Evaluation | None = None,
    model: str = "one",
    files: tuple[Path, ...] = (),
    judges: Mapping[str, float] | None = None,
    last_look: float | None = None,
) -> Evaluation:
    """A run of ``config`` up to the stage ``until``; ``evaluation`` instead of a random one,
    ``judges`` instead of its rewards for the test prompts, ``last_look`` instead of the score of
    its last validation."""
    c, lm, scoring = config, Model({"weights": model}), Scoring({"config.rewards": config.rewards})
    judge = Scoring({"config.rewards": judges}) if judges else scoring
    number = c.seed + c.policy.seed + sum(map(ord, c.objective.name))
    made = evaluation or evaluated(answers(number, lift), answers(c.seed + 70, 0.0), c.seed)

    def fit_policy(lm, objective, options, seed, table, *, context) -> Policy:
        policy = policy_of(number, lift)
        if last_look is None:
            return policy
        *looks, last = policy.validations
        last = dataclasses.replace(last, score=last_look)
        return dataclasses.replace(policy, validations=(*looks, last))

    def evaluate(
        lm, task, scoring, options, decoding, seed, scored, reference, policy, *, context
    ) -> Evaluation:
        return made

    run = _run(workdir, c, until)
    fit = "fit_policy_online" if c.objective.name == "ppo" else "fit_policy"
    task = dataclasses.replace(TASK, template=c.task.template)
    with contextlib.suppress(Finished):
        splits = run.stage("load", load, task, c.task, files)
        scored = run.stage("score", score, scoring, c.score, splits)
        reference = run.stage("fit_reference", fit_reference, lm, c.reference, c.seed, scored)
        table = run.stage("select", select, reference)
        policy = run.stage(fit, fit_policy, lm, c.objective, c.policy, c.seed, table)
        run.stage(
            *("evaluate", evaluate, lm, task, judge, c.evaluate, c.decode, c.seed),
            *(scored, reference, policy),
        )
    return made
