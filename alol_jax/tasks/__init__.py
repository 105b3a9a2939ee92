"""The data: one file per task, each a `Task` value.

Start at `registry`, the table of tasks, then `own`, the task for your own data: `forms` has the
forms of its rows, `listed` what may be named, `reading` brings both together. `sources` reads rows
from files, `splits` splits by prompt. A task names its rewards by key and imports no scorer; only
programs look up a task by name.
"""
