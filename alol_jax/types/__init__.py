"""The values passed between stages and across jit boundaries.

`arrays` has the device values (NamedTuples of arrays) and the axis letters of all docstrings.
`data`, `results` and `context` hold what stages pass on (frozen dataclasses; rows of data are a
`Table` of one), and `task` says what a task is. Imports nothing of ours but tables.
"""

from alol_jax.types.arrays import (
    Batch,
    Grid,
    Params,
    Prompts,
    Targets,
    Work,
)
from alol_jax.types.context import (
    StageContext,
    Watch,
    never,
    silent,
)
from alol_jax.types.data import (
    Annotated,
    Answers,
    Example,
    Gold,
    Limits,
    Scored,
    ScoredSplits,
    Splits,
    TrainingTable,
)
from alol_jax.types.results import (
    Cost,
    Curve,
    Evaluation,
    Interval,
    Policy,
    Report,
    RunSummary,
    SystemScores,
    TestSet,
    Validation,
    Value,
    ValueAudit,
)
from alol_jax.types.task import (
    Exchange,
    RewardSpec,
    Task,
    one_turn,
    stripped,
)

__all__ = [
    "Annotated",
    "Answers",
    "Batch",
    "Cost",
    "Curve",
    "Evaluation",
    "Example",
    "Exchange",
    "Gold",
    "Grid",
    "Interval",
    "Limits",
    "Params",
    "Policy",
    "Prompts",
    "Report",
    "RewardSpec",
    "RunSummary",
    "Scored",
    "ScoredSplits",
    "Splits",
    "StageContext",
    "SystemScores",
    "Targets",
    "Task",
    "TestSet",
    "TrainingTable",
    "Validation",
    "Value",
    "ValueAudit",
    "Watch",
    "Work",
    "never",
    "one_turn",
    "silent",
    "stripped",
]
