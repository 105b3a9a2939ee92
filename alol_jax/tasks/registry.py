"""The tasks: what is particular to one data set, as a value, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.tasks.hha import HHA
from alol_jax.tasks.jsonl import JSONL
from alol_jax.tasks.smalltalk import SMALLTALK
from alol_jax.types import Task, UserError

TASKS: dict[str, Task] = {task.name: task for task in (SMALLTALK, JSONL, HHA)}


def get_task(options: Any) -> Task:
    """The task ``options.name``, with ``options.template`` for its own template if not empty.

    Raises:
      UserError: no task has that name, or the template has no "{prompt}".
    """
    if options.name not in TASKS:
        raise UserError.unknown(f"task.name={options.name!r} is no task", options.name, TASKS)
    task = TASKS[options.name]
    if not options.template:
        return task
    if "{prompt}" not in options.template:
        raise UserError(f"task.template={options.template!r} lacks {{prompt}}: say where it goes")
    return dataclasses.replace(task, template=options.template)
