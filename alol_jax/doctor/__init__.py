"""Whether a machine is ready for a run: one line each, with the way out where it is not.

A program, `python -m alol_jax.doctor`; start at `__main__`. `packages` compares versions and needs
none of them, `machine` looks at what is here, and `step` trains a tiny model.
"""
