"""Experiments for a sceptical reader of the paper, each resumable, and the figures of them.

`labels`, `noise` and `order` run one experiment each and can be stopped at any time; the same
command goes on. `best_of_n` is a stage of `order`. `collect` reads what is finished into small JSON
files, `tables` makes the numbers that people read of them, and `draw` is the program that writes
all of docs/evidence/. Start reading at `running`, which all experiments use.
"""
