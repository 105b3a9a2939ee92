"""Compiling is most of what these tests cost: the arrays are tiny."""

import functools

import jax

quickly = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
"""`jax.jit` whose compiler does not try hard: half the time to compile, the same mathematics."""
