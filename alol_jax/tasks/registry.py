"""The table of tasks, and looking one up by name."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from alol_jax.errors import UserError
from alol_jax.tasks.comet import COMET
from alol_jax.tasks.dialogue import DIALOGUE
from alol_jax.tasks.hha import HHA
from alol_jax.tasks.own import FORMER, OWN
from alol_jax.tasks.reddit import REDDIT
from alol_jax.tasks.seq2text import SEQ2TEXT
from alol_jax.tasks.smalltalk import SMALLTALK
from alol_jax.types import CHAT, Task, is_chat

TASKS: dict[str, Task] = {
    task.name: task for task in (SMALLTALK, OWN, HHA, COMET, REDDIT, DIALOGUE, *SEQ2TEXT)
}


def get_task(options: Any) -> Task:
    """Return the task ``options.name``, with ``options.template`` as its template unless empty.

    With a chat template, it is the template that ends an answer, not the task's stop sequences.

    Raises:
      UserError: no task has that name, the template has no "{prompt}" and is not "chat", or
        ``options.date`` is no date.
    """
    name = OWN.name if options.name == FORMER else options.name
    if name not in TASKS:
        raise UserError.unknown(f"task.name={name!r} is no task", name, TASKS)
    task = TASKS[name]
    if not options.template:
        return task
    if is_chat(options.template):
        return dataclasses.replace(task, template=CHAT, date=_checked(options.date), stop=())
    if "{prompt}" not in options.template:
        raise UserError(
            f"task.template={options.template!r} has no {{prompt}}: add it where the prompt "
            f"belongs, or give {CHAT!r} for the model's own chat template"
        )
    return dataclasses.replace(task, template=options.template)


def _checked(date: str) -> str:
    try:
        return datetime.date.fromisoformat(date).isoformat()
    except ValueError as error:
        raise UserError(f"task.date={date!r} is no date: expected YYYY-MM-DD") from error
