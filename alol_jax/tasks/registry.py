"""The table of tasks, and looking one up by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.errors import UserError
from alol_jax.tasks.comet import COMET
from alol_jax.tasks.dialogue import DIALOGUE
from alol_jax.tasks.hha import HHA
from alol_jax.tasks.own import FORMER, OWN
from alol_jax.tasks.reddit import REDDIT
from alol_jax.tasks.seq2text import SEQ2TEXT
from alol_jax.tasks.smalltalk import SMALLTALK
from alol_jax.types import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (SMALLTALK, OWN, HHA, COMET, REDDIT, DIALOGUE, *SEQ2TEXT)
}


def get_task(options: Any) -> Task:
    """Return the task ``options.name``, with ``options.template`` as its template unless empty.

    Raises:
      UserError: no task has that name, or the template has no "{prompt}".
    """
    name = OWN.name if options.name == FORMER else options.name
    if name not in TASKS:
        raise UserError.unknown(f"task.name={name!r} is no task", name, TASKS)
    task = TASKS[name]
    if not options.template:
        return task
    if "{prompt}" not in options.template:
        raise UserError(
            f"task.template={options.template!r} has no {{prompt}}: add it where the prompt belongs"
        )
    return dataclasses.replace(task, template=options.template)
