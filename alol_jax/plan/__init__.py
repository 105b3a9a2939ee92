"""Does a config fit on a TPU, and what does a step cost? Answered without a TPU.

Start at `__main__`, the program. `setting` is a config on a topology; `programs` describes the
functions that a run compiles; `costs` and `traffic` analyse the compiled programs; `knobs` tries
changes that save memory; `chips` has the data sheets; `summary` formats the result. Like any
program, it may import every room; nothing imports it.
"""
