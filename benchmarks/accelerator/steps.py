"""What a training step costs: the update of `training.fit`, compiled once and then repeated.

A row has the median seconds of a step, real tokens per second, the closed-form FLOPs of
`training.flops`, and memory twice: what the device's allocator had at most, and what the compiler
says of its program. Every grid is full of examples: all its tokens are real.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alol_jax.devices.sharding import place_like_params
from alol_jax.models.nf4 import NF4
from alol_jax.models.transformer import Transformer
from alol_jax.objectives.registry import get_objective
from alol_jax.training.fit import TrainState, Update, init_state, make_update, policy_forward
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Batch, Params
from benchmarks.accelerator.measuring import (
    Row,
    Tell,
    analysed_bytes,
    attempt,
    median_of,
    shares,
)
from benchmarks.accelerator.subjects import (
    CHUNK,
    OPTIMIZER,
    Load,
    Subject,
    full_batch,
    weights,
    work_of,
)

ONE_B = Subject("llama-3.2-1b")
SEVEN_B = Subject("llama-7b", nf4=NF4(double=False))
XL = Subject("gpt2-xl", rank=0)
NARROW, WIDE = Load(2, 2048, 384, 128), Load(1, 4096, 384, 128)


class Prepared(NamedTuple):
    """One objective's update and what it is called with; ``state`` is donated at each call."""

    update: Update
    state: TrainState
    frozen: Params
    batch: Batch


def one_b(tell: Tell, tiny: bool) -> None:
    """Llama-3.2-1B, bfloat16 base, LoRA r = 64: packed rows of 2048 and of 4096 tokens."""
    for load in [NARROW, WIDE, Load(4, 2048, 384, 128)][: 1 if tiny else None]:
        _told(tell, ONE_B, load, tiny)


def seven_b(tell: Tell, tiny: bool) -> None:
    """Llama-7B, NF4 base, LoRA r = 64."""
    for load in [NARROW, Load(4, 2048, 384, 128)][: 1 if tiny else None]:
        _told(tell, SEVEN_B, load, tiny)


def xl(tell: Tell, tiny: bool) -> None:
    """GPT-2 XL, every weight trained in float32, computed in bfloat16."""
    _told(tell, XL, NARROW, tiny)


def _told(tell: Tell, subject: Subject, load: Load, tiny: bool) -> None:
    load = load.shrunk() if tiny else load
    quantised = ", NF4" if subject.nf4 else ""
    trains = f"LoRA {subject.rank}" if subject.rank else "all weights"
    what = f"a_lol step, {subject.preset}{quantised}, {trains}, {load}"
    attempt(tell, what, functools.partial(step_row, subject, "a_lol", load))


def prepare(
    model: Transformer, given: tuple[Params, Params], objective: str, load: Load
) -> Prepared:
    """A step of an objective, on one grid, with the hyper-parameters of its definition.

    Args:
        given: (what trains, what is frozen).
    """
    row, tx = get_objective(objective), make_optimizer(OPTIMIZER, steps=1000)
    state = init_state(given[0], tx)
    state = place_like_params(state, next(iter(given[0].values())).sharding.mesh)
    branches = row.responses > 1 and model.attention.branches
    forward = policy_forward(model, chunk=CHUNK, branches=branches)
    update = make_update(forward, row.loss, tx, jax.random.key(1), state)
    return Prepared(update, state, given[1], full_batch(model, load, row.responses))


def step_row(subject: Subject, objective: str, load: Load) -> Row:
    """One objective on one model and load."""
    responses, tiny = get_objective(objective).responses, load.width < 1024
    model, said = subject.open(tiny, (load.width,))
    ready = prepare(model, weights(model), objective, load)
    work, again = work_of(model, {**ready.frozen, **ready.state.trained}, load, responses)
    held = {"state": ready.state}

    def once():
        held["state"], held["metrics"] = ready.update(held["state"], ready.frozen, ready.batch)
        return held["metrics"]

    began = time.perf_counter()
    jax.block_until_ready(once())
    compiling = time.perf_counter() - began
    seconds = median_of(once, most=10, seconds=4.0)
    loss = float(held["metrics"]["loss"])
    row = {
        "seconds": seconds,
        "compile_seconds": compiling,
        "tokens_per_second": ready.batch.work.tokens / seconds,
        "analysed_bytes": _analysed(ready, held["state"]),
        "loss": loss,
        "note": said if math.isfinite(loss) else f"THE LOSS IS {loss}, {said}",
    }
    return row | shares(work, seconds, again)


def _analysed(ready: Prepared, state: TrainState) -> int | None:
    """What the compiler says that the pass over a grid needs, and the optimizer's state."""
    grid, targets = ready.batch.grids[0], ready.batch.targets
    sums = jax.eval_shape(ready.update.zeros, state.trained, ready.frozen, grid, targets)
    arguments = (sums, state.trained, ready.frozen, grid, targets, state.step, jnp.int32(0))
    found = analysed_bytes(ready.update.add.lower(*arguments).compile())
    return found and found + sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))


def objectives(tell: Tell, tiny: bool) -> None:
    """nll, a_lol and dpo on Llama-3.2-1B at one load, alternating: what annotations save.

    dpo compares two responses to a prompt, which is read once where the kernel has branches.
    """
    load = Load(2, 2048, 256, 128)
    load = load.shrunk() if tiny else load
    names = ("nll", "a_lol", "dpo")
    try:
        model, _ = ONE_B.open(tiny, (load.width,))
        given = weights(model)
        ready = {name: prepare(model, given, name, load) for name in names}
        times = _alternating(ready, rounds=3 if tiny else 9)
    except Exception as error:
        tell({"what": "objectives", "failed": f"{type(error).__name__}: {error}"[:300]})
        return
    for name in names:
        responses = get_objective(name).responses
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(times[name], times["nll"], strict=True)
        )
        seconds, work = statistics.median(times[name]), ready[name].batch.work
        row = {
            "what": f"{name} step, {load}, {responses} responses to a prompt",
            "seconds": seconds,
            "ratio": ratio,
            "note": f"× {ratio:.3f} of nll",
            "tokens_per_second": work.tokens / seconds,
        }
        params = {**given[0], **given[1]}
        flop, again = work_of(model, params, load, responses)
        tell(row | shares(flop, seconds, again))


def _alternating(ready: dict[str, Prepared], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each, one after the other, the first round (which compiles) left out."""
    states = {name: one.state for name, one in ready.items()}
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds + 2):
        for name in list(ready)[:: 1 if turn % 2 else -1]:
            one = ready[name]
            began = time.perf_counter()
            states[name], metrics = one.update(states[name], one.frozen, one.batch)
            jax.block_until_ready((states[name], metrics))
            if turn > 1:
                times[name].append(time.perf_counter() - began)
    return times
