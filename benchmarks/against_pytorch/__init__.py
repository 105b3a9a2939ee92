"""The race against PyTorch: the same rows, weights and draws, here and in the published structure.

Start at `__main__`. `job` is what all sides read; `jax_side`, `torch_side` and, for pairs,
`trl_side` run it; `report` compares what they wrote.
"""
