"""The data: one file per task, each a `Task` value.

Start at `registry`, the table of tasks, then `own`, the task for your own data. `sources` reads
rows from files and the Hugging Face hub, `splits` splits by prompt. A task names its rewards by key
and imports no scorer; only programs look up a task by name.
"""
