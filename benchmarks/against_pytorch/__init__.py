"""The race against PyTorch: the same rows, weights and draws, here and in the published structure.

Start at `__main__`. `job` is what both sides read, `jax_side` and `torch_side` run it, `report`
compares what they wrote.
"""
