"""Time one fit_policy step of each objective, at the same shapes.

    python -m benchmarks.policy_step --config=configs/quickstart.py --objectives=nll,a_lol,dpo,pro

For each objective, prints the median seconds of a step, the ratio to the first objective, and the
number of matrix products in its lowered program. Steps alternate in random order, so that machine
noise affects all objectives equally. Objectives that compare K responses get as many prompts as
the others get rows. They are timed a second time without prompt sharing: each prompt is then read
K times, once per response.
"""

import functools
import random
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from alol_jax.devices.sharding import make_mesh, place_like_params, place_rows
from alol_jax.models.language_model import open_language_model
from alol_jax.objectives.logprobs import response_logp, to_sequences
from alol_jax.objectives.registry import get_objective, hyper_parameters, num_responses
from alol_jax.training.fit import init_state, make_update, policy_loss
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Batch, Targets, Tokens

CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
OBJECTIVES = flags.DEFINE_list("objectives", ["nll", "a_lol"], "Objectives to time.")
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps of each objective.")


def random_batch(lm, size, responses, rng):
    """A batch of full-length random rows of the largest shape: [1, size, …]."""
    prompt, response = lm.shapes[-1]
    lead = (1, size) if responses == 1 else (1, size, responses)
    ids = functools.partial(rng.integers, lm.transformer.config.vocab_size, dtype=np.int32)
    ones = np.ones((*lead, response), np.float32)
    tokens = Tokens(
        ids(size=(1, size, prompt)),
        np.ones((1, size, prompt), np.float32),
        ids(size=ones.shape),
        ones,
    )
    reward = rng.random(lead, np.float32)
    return place_rows(Batch(tokens, -5 * ones, reward, 0.1 * ones[..., 0]), lm.mesh, axis=1)


def unshared_policy_loss(model, loss, *, chunk):
    """`fit.policy_loss` without prompt sharing: the prompt is repeated for each response."""

    def loss_fn(trained, frozen, batch, key):
        params, tokens = {**frozen, **trained}, batch.tokens
        count = tokens.response.shape[1]
        rows = Tokens(
            *(jnp.repeat(x, count, axis=0) for x in (tokens.prompt, tokens.prompt_mask)),
            *(x.reshape(-1, x.shape[-1]) for x in (tokens.response, tokens.mask)),
        )
        read = to_sequences(rows)
        hidden = model.hidden(params, read.ids, read.mask, key)
        logp = response_logp(hidden, model.unembedding(params), rows, chunk=chunk)
        targets = Targets(tokens.mask, batch.ref_logp, batch.reward, batch.advantage)
        value, metrics = loss(logp.reshape(tokens.response.shape), targets)
        return value, (jnp.float32(tokens.prompt.shape[0]), metrics)

    return loss_fn


def losses_of(lm, config, names):
    """Name of what is timed -> (loss function, responses per prompt)."""
    found = {}
    for name in names:
        objective = get_objective(name)
        chosen = {key: config.objective[key] for key in hyper_parameters(objective)}
        loss = functools.partial(objective.loss, **chosen)
        loss_fn = policy_loss(lm.transformer, loss, chunk=lm.logprob_chunk)
        count = num_responses(objective, config.objective)
        found[name] = (loss_fn, count)
        if count > 1:
            loss_fn = unshared_policy_loss(lm.transformer, loss, chunk=lm.logprob_chunk)
            found[f"{name}, prompts apart"] = (loss_fn, count)
    return found


def main(_):
    config = CONFIG.value
    lm = open_language_model(config.model, make_mesh(**config.mesh))
    tx = make_optimizer(config.policy.optimizer, steps=1000)
    runs, products = {}, {}
    for name, (loss, responses) in losses_of(lm, config, OBJECTIVES.value).items():
        rng = np.random.default_rng(0)
        batch = random_batch(lm, config.policy.batch_size, responses, rng)
        state = place_like_params(init_state(lm.trainable(jax.random.key(0)), tx), lm.mesh)
        update = make_update(loss, tx, jax.random.key(1), state)
        text = update.lower(state, lm.frozen(), batch).as_text()
        products[name] = text.count("stablehlo.dot_general")
        state, metrics = update(state, lm.frozen(), batch)
        runs[name] = (update, state, batch)
    seconds = {name: [] for name in runs}
    order = random.Random(0)
    for _ in range(STEPS.value):
        for name in order.sample(list(runs), len(runs)):
            update, state, batch = runs[name]
            start = time.perf_counter()
            state, metrics = update(state, lm.frozen(), batch)
            jax.block_until_ready((state, metrics))
            seconds[name].append(time.perf_counter() - start)
            runs[name] = (update, state, batch)
    first = statistics.median(seconds[OBJECTIVES.value[0]])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:28} {median:.3f} s  × {median / first:.3f}  {products[name]} matrix products")


if __name__ == "__main__":
    app.run(main)
