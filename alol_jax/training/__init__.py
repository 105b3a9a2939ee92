"""Training: the loop, its batches, and its metrics.

Start at `fit`, the loop as a generator; `optim` makes the optimizer and `batches` the batches, a
pure function of (seed, step). `annotate` runs the frozen models over rows, `head_fit` fits value
heads, `rollouts` and `online` are PPO, `validation` scores a policy, `metrics` is the log. `flops`
and `costs` count the work. `fit` and `batches` know no model: it comes as an argument.
"""
