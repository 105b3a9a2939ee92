"""The data: one file per task, as a `Task` value.

Start at `registry`, the table of tasks, then `jsonl`, the task for your own data. `sources` reads
rows from files and hubs, `splits` divides prompts. A task names its rewards by key and imports no
scorer; only programs look a task up by its name.
"""
