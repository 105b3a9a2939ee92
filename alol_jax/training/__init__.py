"""Training: the loop, its batches, and its metrics.

Start at `fit`, the loop as a generator. `optim` makes the optimizer and `batches` the batches, as a
pure function of (seed, step). `annotate` runs frozen models over rows, `head_fit` fits value heads,
`rollouts` generates responses for PPO, `validation` scores a policy, and `metrics` is the log.
`flops` and `costs` compute what training costs.
"""
