"""Measure the loss and step time of an NF4 base, compared with the same base in bfloat16.

    python -m benchmarks.nf4_cost --config=configs/quickstart.py

For each base, prints its size, the mean NLL per response token on the task's test rows, and the
difference to bfloat16 with a 95% interval (paired bootstrap over rows). Activations are float32
here, so that only the weights differ; with NF4, everything except the blocks' kernels is bfloat16.
Then prints, for each activation dtype, the median seconds of a policy step of the config's
objective on test rows. Steps of the bases alternate, so that machine noise affects all equally.
"""

import copy
import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from alol_jax.devices.sharding import make_mesh, place_like_params
from alol_jax.models.language_model import open_language_model
from alol_jax.objectives.registry import get_objective, hyper_parameters
from alol_jax.stages.load import counter_of, read_splits
from alol_jax.tables.table import Table
from alol_jax.tasks.registry import get_task
from alol_jax.training.annotate import annotator, token_numbers
from alol_jax.training.batches import read_ahead, shuffled
from alol_jax.training.fit import init_state, make_update, policy_forward
from alol_jax.training.grids import packer_of
from alol_jax.training.items import single_items, tokenise
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Scored, Watch

CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Activation dtypes to time.")
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps of each base.")

BASES = {  # name -> config.model.quantisation, dtype of the leaves that are not quantised
    "float32": ("none", jnp.float32),
    "bfloat16": ("none", jnp.bfloat16),
    "nf4": ("nf4", jnp.bfloat16),
    "nf4-double": ("nf4-double", jnp.bfloat16),
}


def open_base(options, mesh, name):
    """The language model with float32 activations, and its frozen leaves."""
    quantisation, dtype = BASES[name]
    options = copy.deepcopy(options)
    options.update({"quantisation": quantisation, "dtype": "float32"})
    lm = open_language_model(options, mesh)
    frozen = lm.frozen()
    return lm, {p: x if "/nf4_" in p else x.astype(dtype) for p, x in frozen.items()}


def test_items(config, lm):
    """The (prompt, response) rows of the task's test split, as items."""
    task = get_task(config.task)
    rows = (
        Scored(example.id, example.prompt, response, example.source, (), 0.0)
        for example in read_splits(task, config.task, counter_of(lm, task, config.task)).test
        for response in example.responses
    )
    ready, _ = tokenise(Table.of(rows, Scored), task, lm.tokenizer, lm.limits)
    # The advantage of a typical kept row; no result depends on it.
    return single_items(ready.replace(advantage=np.full(len(ready), 0.1)))


def row_nll(lm, frozen, items):
    """Summed NLL and number of response tokens of every row: f64[2, rows]."""
    fresh = lm.trainable(jax.random.key(0))  # adapters that add nothing
    run, params = annotator(lm.transformer, None, lm.logprob_chunk, True), {**frozen, **fresh}
    watch, rows = Watch(""), items.rows
    found = token_numbers(lm, rows, lambda grid: run(params, {}, grid)[0], watch=watch)
    nll = [-row.sum(dtype=np.float64) for row in found]
    return np.array([nll, rows["response"].lengths])


def interval(nll, reference, draws=2000):
    """95% bootstrap interval over rows of the difference in mean NLL per token."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, nll.shape[1], (draws, nll.shape[1]))
    tokens = nll[1][chosen].sum(-1)
    return np.percentile((nll[0] - reference[0])[chosen].sum(-1) / tokens, [2.5, 97.5])


def timed_steps(config, opened, batch, dtype):
    """Median seconds of a policy step on each base; steps alternate."""
    objective = get_objective(config.objective.name)
    chosen = {key: config.objective[key] for key in hyper_parameters(objective)}
    loss = functools.partial(objective.loss, **chosen)
    tx = make_optimizer(config.policy.optimizer, steps=1000)
    runs = {}
    for name, (lm, frozen) in opened.items():
        model = dataclasses.replace(lm.transformer, dtype=jnp.dtype(dtype))
        state = place_like_params(init_state(lm.trainable(jax.random.key(0)), tx), lm.mesh)
        forward = policy_forward(model, chunk=lm.logprob_chunk, branches=False)
        update = make_update(forward, loss, tx, jax.random.key(1), state)
        runs[name] = (update, update(state, frozen, batch)[0])
    seconds = {name: [] for name in runs}
    for _ in range(STEPS.value):
        for name, (update, state) in runs.items():
            start = time.perf_counter()
            state, metrics = update(state, opened[name][1], batch)
            jax.block_until_ready(metrics)
            seconds[name].append(time.perf_counter() - start)
            runs[name] = (update, state)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main(_):
    config = CONFIG.value
    mesh = make_mesh(**config.mesh)
    opened = {name: open_base(config.model, mesh, name) for name in BASES}
    items = test_items(config, opened["bfloat16"][0])
    nll = {n: row_nll(*each, items) for n, each in opened.items()}
    rows, tokens = len(items.rows), int(nll["bfloat16"][1].sum())
    print(f"{config.model.path}: {rows} test rows, {tokens} response tokens, float32 activations")
    mean = {name: found[0].sum() / tokens for name, found in nll.items()}
    for name, (_, frozen) in opened.items():
        low, high = interval(nll[name], nll["bfloat16"])
        size = sum(leaf.nbytes for leaf in frozen.values()) / 2**20
        kernels = sum(x.nbytes for p, x in frozen.items() if "_proj/" in p) / 2**20
        print(
            f"{name:10}  {size:6.1f} MiB ({kernels:6.1f} in kernels)  NLL {mean[name]:.4f}  "
            f"{mean[name] - mean['bfloat16']:+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    lm, size = opened["bfloat16"][0], config.policy.batch_size
    draw = shuffled(np.ones(len(items.members), bool), size=size, seed=0)
    packer = packer_of(lm, items, draw)
    batch = next(iter(read_ahead(items, draw, packer, lm.mesh)(0, 1)))
    for dtype in DTYPES.value:
        tokens, grids = batch.work.tokens, len(batch.grids)
        print(
            f"{config.objective.name} step of {size} rows, {tokens} tokens, {grids} grids, {dtype}"
        )
        seconds = timed_steps(config, opened, batch, dtype)
        for name, median in seconds.items():
            print(f"{name:10}  {median:.3f} s  × {median / seconds['bfloat16']:.3f}")


if __name__ == "__main__":
    app.run(main)
