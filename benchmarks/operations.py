"""Where the time of training and of decoding goes, by XLA operation.

    python -m benchmarks.operations --config=configs/quickstart.py

Trains some steps of the reference on the config's rows, reads a prompt for every slot, then writes
tokens in all slots, each under JAX's profiler, and prints milliseconds: per pass over a grid, of
reading all prompts, and per decoding step. Operations that
differ only in their number count as one; an operation that contains others is left out. Operations
that run at the same time are each counted, so the sum may exceed the time of the pass.
"""

from __future__ import annotations

import collections
import functools
import gzip
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from alol_jax.decoding.prompts import one_per_row
from alol_jax.decoding.sampling import Sampling
from alol_jax.decoding.slots import advance, idle
from alol_jax.devices.sharding import make_mesh, place_like_params
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.objectives.registry import get_objective
from alol_jax.runs.command_line import guarded
from alol_jax.stages.load import counter_of, read_splits
from alol_jax.stages.score import rows_of
from alol_jax.tasks.registry import get_task
from alol_jax.training.batches import read_ahead, shuffled
from alol_jax.training.fit import init_state, make_update, policy_forward
from alol_jax.training.grids import packer_of
from alol_jax.training.items import single_items, tokenise
from alol_jax.training.optim import make_optimizer

CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
COLUMNS = flags.DEFINE_list("columns", ["128", "768"], "Widths of the cache to decode with.")
STEPS, PROMPT, NEW_TOKENS, SHOWN = 4, 128, 16, 12
CONTAINERS = re.compile(r"while|call|conditional|tuple")


class Times(NamedTuple):
    """Milliseconds per pass: in all, and of each kind of operation."""

    whole: float
    kinds: dict[str, float]


def traced(run: Callable[[], int]) -> Times:
    """Trace ``run``, which returns how many passes it made, once everything is compiled."""
    for _ in range(2):
        run()  # the results of the first may lie elsewhere than what it began with
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            passes = run()
            whole = time.perf_counter() - began
        (file,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    kinds: collections.Counter[str] = collections.Counter()
    for event in events:
        operation = event.get("args", {}).get("hlo_op")
        if operation and not CONTAINERS.match(operation):
            kinds[re.sub(r"(\.\d+)+$", "", operation)] += event["dur"]
    each = {kind: time / 1e3 / passes for kind, time in kinds.most_common()}
    return Times(1e3 * whole / passes, each)


def training(lm: LanguageModel, config) -> tuple[str, Callable[[], int]]:
    """Some steps of `fit_reference` on the config's rows; a pass reads one grid."""
    task = get_task(config.task)
    table = rows_of(read_splits(task, config.task, counter_of(lm, task, config.task)).train)
    items = single_items(tokenise(table, task, lm.tokenizer, lm.limits)[0])
    every = np.ones(len(items.members), bool)
    order = shuffled(every, size=config.reference.batch_size, seed=config.seed)
    packer = packer_of(lm, items, order)
    tx = make_optimizer(config.reference.optimizer, steps=2 * STEPS)
    start = init_state(lm.trainable(jax.random.key(0)), tx)
    forward = policy_forward(lm.transformer, chunk=lm.logprob_chunk, branches=False)
    states = [place_like_params(start, lm.mesh)]
    update = make_update(forward, get_objective("nll").loss, tx, jax.random.key(1), states[0])
    batches = list(read_ahead(items, order, packer, lm.mesh)(0, STEPS))

    def run() -> int:
        for batch in batches:
            states[0], metrics = update(states[0], lm.frozen(), batch)
        jax.block_until_ready(metrics)
        return sum(len(batch.grids) for batch in batches)

    return f"training, {packer.summary}", run


def reading(lm: LanguageModel, config) -> tuple[str, Callable[[], int]]:
    """The prompts of all slots; a pass reads them all."""
    model, params = lm.for_decoding(lm.trainable(jax.random.key(0)))
    count = config.decode.batch_size
    prompts = one_per_row([[1] * PROMPT] * count, PROMPT, lm.tokenizer.pad_id)
    read = jax.jit(functools.partial(model.prefill, room=0))

    def run() -> int:
        jax.block_until_ready(read(params, prompts))
        return 1

    return f"reading, {count} prompts of {PROMPT} tokens", run


def decoding(lm: LanguageModel, config, columns: int) -> tuple[str, Callable[[], int]]:
    """Tokens written in all slots of a cache; a pass writes one in each."""
    model, params = lm.for_decoding(lm.trainable(jax.random.key(0)))
    count, sampling = config.decode.batch_size, Sampling(max_new_tokens=NEW_TOKENS, end=())
    states = [idle(model, sampling, rows=count, width=columns - NEW_TOKENS)]

    @functools.partial(jax.jit, donate_argnums=1)
    def write(params, slots):
        started = slots._replace(
            done=jnp.zeros_like(slots.done), lengths=jnp.zeros_like(slots.lengths)
        )
        return advance(model, params, started, sampling, until=count)

    def run() -> int:
        states[0] = jax.block_until_ready(write(params, states[0]))
        return NEW_TOKENS

    return f"decoding, {count} slots of {columns} columns", run


def report(name: str, times: Times) -> str:
    """The largest kinds of operations, as Markdown."""
    largest = list(times.kinds.items())[:SHOWN]
    rest = sum(times.kinds.values()) - sum(each for _, each in largest)
    lines = [f"| {name} | {times.whole:.0f} ms |", "|---|---:|"]
    lines += [f"| {kind} | {each:.1f} |" for kind, each in largest]
    return "\n".join([*lines, f"| all others | {rest:.1f} |", ""])


def main(_) -> None:
    config = CONFIG.value
    lm = open_language_model(config.model, make_mesh(data=-1, fsdp=1, tensor=1))
    lm = lm.for_template(config.task.template)
    loads = [training, reading]
    loads += [functools.partial(decoding, columns=int(columns)) for columns in COLUMNS.value]
    for load in loads:
        name, run = load(lm, config)
        print(report(name, traced(run)), flush=True)


if __name__ == "__main__":
    sys.exit(guarded(lambda: app.run(main)))
