"""Random cases for the losses, and how a test evaluates one."""

from __future__ import annotations

import functools

import jax
import numpy as np

from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.types import Targets

NAMES = sorted(name for name, row in OBJECTIVES.items() if not row.online)
SINGLE = [name for name in NAMES if OBJECTIVES[name].responses == 1]
PAIRED = [name for name in NAMES if OBJECTIVES[name].responses > 1]
WITH_RATIO = ["r_lol", "a_lol", "a_lol_seq"]

B, R = 8, 7


def random_case(name: str, seed: int = 0) -> tuple[np.ndarray, Targets]:
    """Random log-probabilities and targets of the shape that the objective takes."""
    rng = np.random.default_rng(seed)
    responses = OBJECTIVES[name].responses
    shape = (B, responses, R) if responses > 1 else (B, R)
    lengths = rng.integers(1, R + 1, shape[:-1])
    mask = np.arange(R) < lengths[..., None]
    logp = -rng.exponential(0.5, shape)
    ref_logp = logp + rng.normal(0.0, 0.3, shape)
    reward = rng.uniform(0.1, 1.0, shape[:-1])
    advantage = np.maximum(rng.normal(0.2, 0.4, shape[:-1]), 0.0)
    columns = [x.astype(np.float32) for x in (logp, mask, ref_logp, reward, advantage)]
    return columns[0], Targets(*columns[1:])


@functools.cache
def compiled(name: str):
    """(logp, targets, hyper) -> ((loss, metrics), gradient); numbers in hyper are arguments too."""
    loss = OBJECTIVES[name].loss
    valued = jax.value_and_grad(lambda logp, t, hyper: loss(logp, t, **hyper), has_aux=True)
    return jax.jit(valued)


def evaluate(name: str, logp, targets: Targets, **hyper):
    """Loss, gradient with respect to logp, and metrics."""
    (value, metrics), grad = compiled(name)(logp, targets, hyper)
    return value, grad, metrics


def assert_same(first, second, tolerance: float = 1e-6) -> None:
    """Loss and gradient agree."""
    for one, other in zip(first[:2], second[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
