"""What an objective costs: one fit_policy step of each, at the same shapes, alternating.

    python -m benchmarks.policy_step --config=configs/quickstart.py --objectives=nll,a_lol,a_lol_seq

Prints for each objective the median seconds of a step, the ratio to the first one, and the number
of matrix products in its lowered program. Steps alternate, so that a slow moment of the machine
falls on all of them.
"""

import functools
import statistics
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from alol_jax.fit import init_state, make_update, policy_loss
from alol_jax.language_model import open_language_model
from alol_jax.objectives import get_objective, hyper_parameters
from alol_jax.optim import make_optimizer
from alol_jax.sharding import make_mesh, place_like_params, place_rows
from alol_jax.types import Batch, Tokens

CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
OBJECTIVES = flags.DEFINE_list("objectives", ["nll", "a_lol"], "K = 1 objectives to time.")
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps of each.")


def random_batch(lm, size, rng):
    """Full-length random rows of the largest shape: [1, size, …]."""
    prompt, response = lm.shapes[-1]
    ids = functools.partial(rng.integers, lm.transformer.config.vocab_size, dtype=np.int32)
    ones = np.ones((1, size, response), np.float32)
    tokens = Tokens(
        ids(size=(1, size, prompt)),
        np.ones((1, size, prompt), np.float32),
        ids(size=(1, size, response)),
        ones,
    )
    return Batch(tokens, -5 * ones, ones[..., 0], 0.1 * ones[..., 0])


def main(_):
    config = CONFIG.value
    lm = open_language_model(config.model, make_mesh(**config.mesh))
    tx = make_optimizer(config.policy.optimizer, steps=1000)
    batch = random_batch(lm, config.policy.batch_size, np.random.default_rng(0))
    batch = place_rows(batch, lm.mesh, axis=1)
    runs, products = {}, {}
    for name in OBJECTIVES.value:
        objective = get_objective(name)
        chosen = {key: config.objective[key] for key in hyper_parameters(objective)}
        loss = functools.partial(objective.loss, **chosen)
        loss = policy_loss(lm.transformer, loss, chunk=lm.logprob_chunk)
        state = place_like_params(init_state(lm.fresh(jax.random.key(0)), tx), lm.mesh)
        update = make_update(loss, tx, jax.random.key(1), state)
        text = update.lower(state, lm.frozen(), batch).as_text()
        products[name] = text.count("stablehlo.dot_general")
        runs[name] = (update, *update(state, lm.frozen(), batch))
    seconds = {name: [] for name in runs}
    for _ in range(STEPS.value):
        for name, (update, state, _) in runs.items():
            start = time.perf_counter()
            state, metrics = update(state, lm.frozen(), batch)
            jax.block_until_ready(metrics)
            seconds[name].append(time.perf_counter() - start)
            runs[name] = (update, state, metrics)
    first = statistics.median(seconds[OBJECTIVES.value[0]])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:16} {median:.3f} s  × {median / first:.3f}  {products[name]} matrix products")


if __name__ == "__main__":
    app.run(main)
