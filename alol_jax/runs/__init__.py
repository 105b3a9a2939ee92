"""A run on disk and on the terminal.

Start at `workdir`: a stage is computed once and loaded from then on; `lock` lets in one run at a
time. `artifacts` writes a stage's result as files, with rows in `tables` and arrays in
`checkpoint`. `command_line` reads flags and turns errors into one line, `progress` prints. Nothing
here knows a model or an objective.
"""
