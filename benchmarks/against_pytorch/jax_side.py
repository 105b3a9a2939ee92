"""The same job here: annotated once, packed, one model."""

from __future__ import annotations

import functools
import resource
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.decode import respond
from alol_jax.decoding.sampling import Sampling
from alol_jax.devices.sharding import place_like_params
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.registry import get_objective
from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table
from alol_jax.training.annotate import annotate
from alol_jax.training.batches import read_ahead
from alol_jax.training.fit import init_state, make_update, policy_forward
from alol_jax.training.grids import packer_of
from alol_jax.training.items import Items
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Annotated, Watch
from benchmarks.against_pytorch.job import Job

HYPER = {"nll": (), "a_lol": ("clip",), "a_lol_seq": ("clip",), "dpo": ("beta",)}


def peak_bytes() -> int:
    """Peak memory: of the device, or of this process on a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return stats.get("peak_bytes_in_use", resident)


def table_of(job: Job) -> Table[Annotated]:
    """The rows of a job."""
    count, nothing = len(job.reward), Texts.repeated("", len(job.reward))
    texts = dict.fromkeys(("example_id", "source", "prompt_text", "response_text"), nothing)
    tokens = {
        name: Ragged.of(np.concatenate(rows).astype(np.int32), np.array([len(r) for r in rows]))
        for name, rows in (("prompt", job.prompts), ("response", job.responses))
    }
    numbers = {
        "ref_logp": Ragged.empty(count, np.float32),
        "reward": job.reward.astype(np.float64),
        "value": np.zeros(count),
        "advantage": job.advantage.astype(np.float64),
        "kept": np.ones(count, bool),
    }
    return Table(Annotated, texts | tokens | numbers)


def train(job: Job, objective: str, lm: LanguageModel, options: ConfigDict) -> dict:
    """Run the steps of a job; return seconds, losses, peak memory and the cost of annotating."""
    rows, start = table_of(job), lm.trainable(jax.random.key(0))
    annotating = 0.0
    if "ref_logp" in get_objective(objective).reads:
        logps = _annotated(lm, start, rows)  # compiles
        began = time.perf_counter()
        logps = _annotated(lm, start, rows)
        annotating = time.perf_counter() - began
        rows = rows.replace(ref_logp=logps)
    members, draws = job.items(objective)
    items = Items(rows, members)
    packer = packer_of(lm, items, lambda step: draws[step % len(draws)])
    tx = make_optimizer(options, steps=len(draws))
    state = place_like_params(init_state(start, tx), lm.mesh)
    chosen = {name: job.options[name] for name in HYPER[objective]}
    branches = members.shape[1] > 1 and packer.layout.share
    forward = policy_forward(lm.transformer, chunk=lm.logprob_chunk, branches=branches)
    loss = functools.partial(get_objective(objective).loss, **chosen)
    update = make_update(forward, loss, tx, jax.random.key(1), state)
    batches = list(read_ahead(items, draws.__getitem__, packer, lm.mesh)(0, len(draws)))
    compiled = _compile(update, init_state(start, tx), lm, batches)
    seconds, losses = [], []
    for batch in batches:
        began = time.perf_counter()
        state, metrics = update(state, lm.frozen(), batch)
        losses.append(float(jax.block_until_ready(metrics)["loss"]))
        seconds.append(time.perf_counter() - began)
    work = [batch.work for batch in batches]
    return {
        "seconds": seconds,
        "losses": losses,
        "peak_bytes": peak_bytes(),
        "annotate_seconds": annotating,
        "compile_seconds": compiled,
        "real": sum(w.tokens for w in work) / sum(w.computed for w in work),
        "grids": packer.summary,
    }


def _annotated(lm: LanguageModel, start, rows) -> Ragged:
    return annotate(lm, start, rows, watch=Watch("annotate"))[0]


def _compile(update, state, lm, batches) -> float:
    """Run one step with every size of grid on a state that is thrown away; return the seconds."""
    began, seen = time.perf_counter(), set()
    state = place_like_params(state, lm.mesh)
    for batch in batches:
        sizes = {grid.ids.shape for grid in batch.grids}
        if not sizes <= seen:
            seen |= sizes
            state, metrics = update(state, lm.frozen(), batch)
            jax.block_until_ready(metrics)
    return time.perf_counter() - began


def decode(prompts: list[np.ndarray], lm: LanguageModel, options: dict) -> dict:
    """Greedy answers in slots; the programs are compiled before, by a first round."""
    end = (options["end"],) if options["end"] else ()
    sampling = Sampling(max_new_tokens=options["new_tokens"], end=end)
    ready = lm.for_decoding(lm.trainable(jax.random.key(0)))
    run = functools.partial(
        respond, *ready, prompts, sampling, batching=lm.batching(options["slots"])
    )
    said: list[str] = []
    watch = Watch("answers", said.append)
    run(key=jax.random.key(0), watch=watch)
    began = time.perf_counter()
    answers = run(key=jax.random.key(0), watch=watch)
    return {
        "seconds": time.perf_counter() - began,
        "tokens": sum(map(len, answers)),
        "said": said[-1],
        "answers": [list(answer) for answer in answers],
    }
