"""Training objectives: arrays in, a scalar loss and its metrics out.

Start at `registry`, the table of objectives. `losses` has the losses of single responses, `pairs`
those of preference pairs and rankings; both are built from `terms`. `ppo` has PPO. `advantage`
selects and weighs training rows. `logprobs` is the only module that shifts logits against tokens.
Nothing here depends on a model, a file or a config.
"""
