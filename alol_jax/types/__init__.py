"""The values passed between stages and across jit boundaries.

`arrays` has the device values (NamedTuples of arrays) and the axis letters of all docstrings.
`data`, `results` and `context` hold what stages pass on (frozen dataclasses; rows of data are a
`Table` of one), and `task` says what a task is. Imports nothing of ours but tables.
"""

from alol_jax.types.agreement import Agreement, Interval
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
    RewardTransform,
    Scored,
    ScoredSplits,
    Splits,
    TrainingTable,
)
from alol_jax.types.results import (
    Cost,
    Curve,
    Distilled,
    Evaluation,
    Policy,
    PromptMeasures,
    Report,
    RunSummary,
    StoredMeasure,
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
    "Agreement",
    "Annotated",
    "Answers",
    "Batch",
    "Cost",
    "Curve",
    "Distilled",
    "Evaluation",
    "Example",
    "Exchange",
    "Gold",
    "Grid",
    "Interval",
    "Limits",
    "Params",
    "Policy",
    "PromptMeasures",
    "Prompts",
    "Report",
    "RewardSpec",
    "RewardTransform",
    "RunSummary",
    "Scored",
    "ScoredSplits",
    "Splits",
    "StageContext",
    "StoredMeasure",
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
