"""Evaluations, fits and tables of random figures, for tests of results and report."""

import dataclasses

import numpy as np

from alol_jax.tables.table import Table
from alol_jax.types import (
    Annotated,
    Curve,
    Evaluation,
    Interval,
    Policy,
    RunSummary,
    Scored,
    SystemScores,
    TrainingTable,
    Validation,
    Value,
    ValueAudit,
)
from tests.tiny_run import annotated_rows, scored_table

NAMES = ("helpful", "<b>harmless</b>")
ATTACK = '<script>alert("x")</script><img src="https://example.org/x.png">'
SUMMARY = RunSummary(
    "a_lol", (("clip", 0.9),), "hha", "tiny", '{\n  "seed": 1\n}', (("jax", "0.10"),)
)
EMPTY = Policy({}, 0, (), ())


def answers(system: str, count: int, lift: float) -> Table[Scored]:
    rng = np.random.default_rng(len(system))
    rows = []
    for i in range(count):
        parts = tuple(float(part) for part in rng.uniform(size=2) + lift)
        rows.append(
            Scored(f"t{i}", f"prompt {i} {ATTACK}", f"{system} {i}", "s", parts, sum(parts))
        )
    return scored_table(rows)


def interval(values) -> Interval:
    mean = float(np.mean(values))
    return Interval(mean, mean - 0.0625, mean + 0.0625)


def evaluated(*, count: int = 30, lift: float = 0.2) -> Evaluation:
    rows = {
        "data": answers("data", count, 0.0),
        "reference": answers("reference", count, 0.1),
        "policy": answers("policy", count, 0.1 + lift),
    }
    systems = tuple(
        SystemScores(
            name,
            interval([r.reward for r in mine]),
            tuple(interval([r.components[i] for r in mine]) for i in range(2)),
            tuple(Interval(share, share - 0.05, share + 0.05) for share in (0.1, 0.4, 0.7)),
            Interval(12.3456, 11.0, 13.0),
        )
        for name, mine in rows.items()
    )
    both = list(zip(rows["reference"], rows["policy"], strict=True))
    parts = [interval([p.components[i] - r.components[i] for r, p in both]) for i in range(2)]
    total = interval([p.reward - r.reward for r, p in both])
    return Evaluation(
        rows["data"], rows["reference"], rows["policy"], NAMES, systems, (*parts, total)
    )


def unscored() -> Evaluation:
    """Nothing can score a generation: rewards that must not be read are not numbers."""

    def blank(rows):
        nan = float("nan")
        return scored_table(dataclasses.replace(row, components=(), reward=nan) for row in rows)

    full = evaluated()
    systems = tuple(dataclasses.replace(s, reward=None, components=()) for s in full.systems)
    return dataclasses.replace(
        full,
        data=blank(full.data),
        reference=blank(full.reference),
        policy=blank(full.policy),
        systems=systems,
        differences=(),
    )


def trained(*, curves: tuple[str, ...]) -> Policy:
    steps = tuple(range(1, 61))
    logged = tuple(Curve(name, steps, tuple(1 / s for s in steps)) for name in curves)
    looks = tuple(Validation(s, "mean reward", s / 60) for s in (20, 40, 60))
    return Policy({}, 40, looks, logged)


def training_table() -> TrainingTable:
    rng = np.random.default_rng(5)
    rows = []
    for i in range(50):
        reward, value = (float(x) for x in rng.uniform(size=2))
        text = f"{ATTACK} response {i} " + "word " * i * 3
        rows.append(
            Annotated(
                f"a{i}",
                ("one", "two")[i % 2],
                text,
                text,
                (1,),
                (2,),
                (-0.5,),
                reward,
                value,
                reward - value,
                reward > value,
            )
        )
    return TrainingTable(annotated_rows(rows))


def valued(*, mse: float = 0.2) -> Value:
    predicted = tuple(float(x) for x in np.linspace(0.2, 0.8, 40))
    observed = tuple(x + 0.1 * (-1) ** i for i, x in enumerate(predicted))
    return Value({}, 1.0, ValueAudit(predicted, observed, mse, 0.25, 0.24, 3))
