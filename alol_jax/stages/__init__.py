"""The recipe: one file per stage, in the order of `alol_jax/main.py`.

Start at `main`, which reads as a call of each. A stage is a function from earlier results to its
own result. It receives its task, model and objective as values, never imports another stage, and
leaves saving and resuming to the run.
"""
