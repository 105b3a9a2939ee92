"""The mathematics of training: arrays in, a scalar and its metrics out.

Start at `registry`: one row per objective. Losses of single responses are in `losses`, of pairs
and rankings in `pairs`, both built of `terms`; PPO is in `ppo`. `advantage` decides which rows are
kept, and `logprobs` is the one place that shifts logits against tokens. Nothing here knows a model,
a file or a config.
"""
