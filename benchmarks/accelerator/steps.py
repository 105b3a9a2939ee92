"""What a training step costs: the update of `training.fit`, compiled once and then repeated.

A row has the median seconds of a step, real tokens per second, the closed-form FLOPs of
`training.flops`, and memory twice: what the device's allocator had at most, and what the compiler
says of its program. Every batch is full: all its tokens are real.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from typing import Any, NamedTuple

import jax

from alol_jax.devices.sharding import place_like_params
from alol_jax.models.nf4 import NF4
from alol_jax.models.transformer import Transformer
from alol_jax.objectives.registry import get_objective
from alol_jax.training import flops
from alol_jax.training.fit import TrainState, init_state, make_update, policy_loss
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Batch, Branches, Params
from benchmarks.accelerator.measuring import (
    Row,
    Tell,
    analysed_bytes,
    attempt,
    compiled,
    median_of,
    shares,
)
from benchmarks.accelerator.subjects import CHUNK, OPTIMIZER, Subject, random_batch, weights

ONE_B = Subject("llama-3.2-1b")
SEVEN_B = Subject("llama-7b", nf4=NF4(double=False))
XL = Subject("gpt2-xl", rank=0)
Shape = tuple[int, int, int]  # rows, prompt, response


class Prepared(NamedTuple):
    """One objective's update and what it is called with; ``state`` is donated at each call."""

    update: Any
    state: TrainState
    frozen: Params
    batch: Batch


def one_b(tell: Tell, tiny: bool) -> None:
    """Llama-3.2-1B, bfloat16 base, LoRA r = 64."""
    for shape in [(4, 512, 512), (4, 1536, 512), (2, 3584, 512)][: 1 if tiny else None]:
        _told(tell, ONE_B, shape, tiny)


def seven_b(tell: Tell, tiny: bool) -> None:
    """Llama-7B, NF4 base, LoRA r = 64."""
    for shape in [(4, 512, 512), (4, 1536, 512)][: 1 if tiny else None]:
        _told(tell, SEVEN_B, shape, tiny)


def xl(tell: Tell, tiny: bool) -> None:
    """GPT-2 XL, every weight trained in float32, computed in bfloat16."""
    _told(tell, XL, (4, 512, 512), tiny)


def _told(tell: Tell, subject: Subject, shape: Shape, tiny: bool) -> None:
    shape = shrunk(shape, tiny)
    rows, prompt, response = shape
    quantised = ", NF4" if subject.nf4 else ""
    trains = f"LoRA {subject.rank}" if subject.rank else "all weights"
    what = f"a_lol step, {subject.preset}{quantised}, {trains}, {rows} × ({prompt} + {response})"
    attempt(tell, what, functools.partial(step_row, subject, "a_lol", shape, tiny))


def shrunk(shape: Shape, tiny: bool) -> Shape:
    """A shape for a test on a CPU: a sixteenth of the lengths, at most 64, two rows."""
    return (2, min(shape[1] // 16, 64), min(shape[2] // 16, 64)) if tiny else shape


def prepare(
    model: Transformer, given: tuple[Params, Params], objective: str, shape: Shape
) -> Prepared:
    """A step of an objective with the hyper-parameters of its definition.

    Args:
        given: (what trains, what is frozen).
        shape: prompts, their length and that of each of their responses.
    """
    rows, *lengths = shape
    row, tx = get_objective(objective), make_optimizer(OPTIMIZER, steps=1000)
    state = init_state(given[0], tx)
    state = place_like_params(state, next(iter(given[0].values())).sharding.mesh)
    update = make_update(policy_loss(model, row.loss, chunk=CHUNK), tx, jax.random.key(1), state)
    batch = random_batch(model.config, tuple(lengths), rows, row.responses)
    return Prepared(update, state, given[1], batch)


def work_of(
    model: Transformer, params: Params, shape: Shape, responses: int
) -> tuple[float, float]:
    """FLOPs of one step: without what is computed again, and with it."""
    rows, prompt, response = shape
    one = flops.forward(
        params,
        model.config,
        rows=rows,
        width=prompt + responses * response,
        head_tokens=rows * responses * response,
        branches=Branches(prompt, response) if responses > 1 else None,
    )
    step = functools.partial(flops.step, one, all_train=model.lora is None)
    head_again = rows * responses * response > CHUNK
    return step(remat="none", head_again=False), step(remat=model.remat, head_again=head_again)


def step_row(subject: Subject, objective: str, shape: Shape, tiny: bool) -> Row:
    """One objective on one model at one shape."""
    rows, prompt, response = shape
    responses = get_objective(objective).responses
    width = prompt + responses * response
    model, said = subject.open(tiny, (prompt, width))
    ready = prepare(model, weights(model), objective, shape)
    params = {**ready.frozen, **ready.state.trained}
    work, again = work_of(model, params, shape, responses)
    del params  # the state is donated
    run, compiling = compiled(ready.update, ready.state, ready.frozen, ready.batch)
    held = {"state": ready.state}

    def once():
        held["state"], held["metrics"] = run(held["state"], ready.frozen, ready.batch)
        return held["metrics"]

    seconds = median_of(once, most=10, seconds=4.0)
    loss = float(held["metrics"]["loss"])
    row = {
        "seconds": seconds,
        "compile_seconds": compiling,
        "tokens_per_second": rows * width / seconds,
        "analysed_bytes": analysed_bytes(run),
        "loss": loss,
        "note": said if math.isfinite(loss) else f"THE LOSS IS {loss}, {said}",
    }
    return row | shares(work, seconds, again)


def objectives(tell: Tell, tiny: bool) -> None:
    """nll, a_lol and dpo on Llama-3.2-1B at one shape, alternating: what annotations save.

    dpo compares two responses: as many prompts as the others have rows, each read once.
    """
    shape = shrunk((4, 512, 512), tiny)
    names = ("nll", "a_lol", "dpo")
    try:
        model, _ = ONE_B.open(tiny, (shape[1], sum(shape[1:]), shape[1] + 2 * shape[2]))
        given = weights(model)
        ready = {name: prepare(model, given, name, shape) for name in names}
        times = _alternating(ready, rounds=3 if tiny else 9)
    except Exception as error:
        tell({"what": "objectives", "failed": f"{type(error).__name__}: {error}"[:300]})
        return
    rows, prompt, response = shape
    for name in names:
        responses = get_objective(name).responses
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(times[name], times["nll"], strict=True)
        )
        seconds = statistics.median(times[name])
        kind = f"{responses} responses" if responses > 1 else "rows"
        row = {
            "what": f"{name} step, {rows} × ({prompt} + {response}), {kind}",
            "seconds": seconds,
            "ratio": ratio,
            "note": f"× {ratio:.3f} of nll",
            "tokens_per_second": rows * (prompt + responses * response) / seconds,
        }
        params = {**given[0], **given[1]}
        work, again = work_of(model, params, shape, responses)
        tell(row | shares(work, seconds, again))


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
