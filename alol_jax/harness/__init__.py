"""The reference and the policy of a finished run on tasks of EleutherAI's lm-evaluation-harness.

A program, `python -m alol_jax.harness`; start at `__main__`. `model` is the only file that imports
lm_eval: it shows a policy to it and runs the tasks. `scores` compares what comes back.
"""
