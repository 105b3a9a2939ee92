"""Does a config fit on a TPU, and what does a step cost there? Answered without the TPU.

Start at `__main__`, the program. `setting` is a config on a topology, `programs` the functions that
a run compiles, `costs` and `traffic` read the compiled programs, `knobs` tries what lowers memory,
`chips` has the data sheets, `summary` prints.
"""
