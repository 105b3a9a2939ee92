"""The jitted functions of `select`, `fit_policy` and decoding, with the shapes of their arguments.

They are the same functions that the stages call; their arguments are described, not allocated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from alol_jax.decoding.decode import make_decoder
from alol_jax.decoding.sampling import deterministic_decoding
from alol_jax.devices.sharding import ROWS, bytes_per_device, replicated, shardings_like_params
from alol_jax.models.adapters import folded_paths
from alol_jax.models.grid_sizes import TABLE_TOKENS, widths_for
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import ROOM, LanguageModel
from alol_jax.objectives.ppo import PPOTargets
from alol_jax.objectives.registry import (
    Objective,
    columns_read,
    hyper_parameters,
    num_responses,
)
from alol_jax.text.packing import GridShape, candidates, lengths_of
from alol_jax.training import flops
from alol_jax.training.annotate import annotator
from alol_jax.training.fit import TrainState, make_update, policy_forward
from alol_jax.training.grids import sizes, step_flops
from alol_jax.training.online import init_values, ppo_forward, ppo_loss
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Grid, Prompts, Targets

NAMES = ("select", "policy step", "decode")
"""What `programs_of` describes, in the order of a run."""


class Program(NamedTuple):
    """A jitted function and descriptions of its arguments."""

    name: str
    function: Any
    arguments: tuple
    weights: Any  # the arguments that are parameters
    optimizer: Any  # the optimizer state in memory while the program runs
    idle: Any  # what of both is in memory but not an argument
    flops: float  # of one call, on all chips together, in closed form
    grid: GridShape | None  # what it reads; None for decoding


def programs_of(
    lm: LanguageModel,
    config: ConfigDict,
    objective: Objective,
    room: float,
    grid: GridShape | None = None,
) -> dict[str, Callable[[], Program]]:
    """Name -> builder of the program, for the programs that need most memory and time.

    Each reads the longest prompts and responses, in the largest grid that a run may choose.
    `select` is left out if the objective does not read what it computes.

    Args:
        room: bytes of memory on each chip.
        grid: what the policy step reads instead.
    """
    builders = {
        "select": lambda: select_program(lm, config, objective, room),
        "policy step": lambda: policy_program(lm, config, objective, room, grid),
        "decode": lambda: decode_program(lm, config, room),
    }
    if not {"ref_logp", "advantage"} & columns_read(objective, config.policy.filter):
        del builders["select"]
    return builders


def described(tree: Any, shardings: Any) -> Any:
    """The shape, dtype and sharding of every leaf."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _rows(lm: LanguageModel, shape: tuple[int, ...], dtype: Any, *, axis: int = 0) -> Any:
    sharding = NamedSharding(lm.mesh, P(*[None] * axis, ROWS))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def largest_grid(lm: LanguageModel, responses: int, room: float, *, training: bool) -> GridShape:
    """The largest grid that a run may choose with this memory, full of the longest examples."""
    share, (prompt, response) = lm.transformer.attention.branches, lm.limits
    lengths = lengths_of(np.array([prompt]), np.full((1, responses), response), share=share)
    longest = lengths.longest
    if training:
        rows, width = max(sizes(lm, longest[0], room), key=math.prod)
    else:
        width = widths_for(lm.grid, lm.mesh, longest[0])[-1]
        rows = lm.grid.rows or max(TABLE_TOKENS // width, 1) * lm.shards
    return candidates(lengths, [width], rows=rows, longest=longest)[0]


def select_program(
    lm: LanguageModel, config: ConfigDict, objective: Objective, room: float
) -> Program:
    """The forward pass that annotates a grid of training rows."""
    trained, frozen = lm.abstract()
    params, architecture = {**frozen, **trained}, lm.transformer.config
    logp, shape = "ref_logp" in objective.reads, largest_grid(lm, 1, room, training=False)
    head, value_params = None, {}
    work = flops.forward(
        params,
        architecture,
        tokens=shape.tokens,
        pairs=_pairs(lm, shape, 1),
        head_tokens=shape.rows * shape.targets * logp,
    ).total
    if "advantage" in columns_read(objective, config.policy.filter):
        head = ValueHead(architecture.width, 1.0, config.value.heads, config.value.dropout)
        init = functools.partial(head.init, mean_reward=0.5)
        value_params = jax.eval_shape(init, jax.random.key(0))
        value_params = described(value_params, shardings_like_params(value_params, lm.mesh))
        work += flops.value_head(architecture.width, rows=shape.rows, prompt=shape.width)
    function = annotator(lm.transformer, head, lm.logprob_chunk, logp)
    arguments = (params, value_params, _grid(lm, shape))
    weights = (params, value_params)
    return Program("select", function, arguments, weights, (), (), work, shape)


def _pairs(lm: LanguageModel, shape: GridShape, responses: int) -> float:
    """Pairs of attention in a grid full of the longest examples."""
    share, (prompt, response) = lm.transformer.attention.branches, lm.limits
    each = lengths_of(np.array([prompt]), np.full((1, responses), response), share=share).tokens[0]
    all_of = np.full(responses, response)
    pairs = flops.pairs_of(lm.transformer.config, prompt, all_of, share=share)
    return float(pairs) * shape.tokens / each


def _grid(lm: LanguageModel, shape: GridShape) -> Grid:
    """A grid of this size."""
    whole, slots, targets = (
        (shape.rows, size) for size in (shape.width, shape.slots, shape.targets)
    )
    sizes = (whole, whole, whole, whole, slots, targets, targets, targets, targets)
    dtypes = Grid(*[jnp.int32] * 9)._replace(real=jnp.float32)
    return Grid(*(_rows(lm, size, dtype) for size, dtype in zip(sizes, dtypes, strict=True)))


def _optimizer_state(lm: LanguageModel, config: ConfigDict, trained: Any) -> tuple[Any, Any]:
    """The policy's optimizer and a description of its state."""
    tx = make_optimizer(config.policy.optimizer, steps=1)
    opt_state = jax.eval_shape(tx.init, trained)
    return tx, described(opt_state, shardings_like_params(opt_state, lm.mesh))


def policy_program(
    lm: LanguageModel,
    config: ConfigDict,
    objective: Objective,
    room: float,
    grid: GridShape | None,
) -> Program:
    """The forward and backward pass of one grid; the optimizer, which runs after it, is small."""
    trained, frozen = lm.abstract()
    count = num_responses(objective, config.objective)
    shape = grid or largest_grid(lm, count, room, training=True)
    size = config.ppo.batch_size if objective.online else config.policy.batch_size
    lead = (size,) if count == 1 else (size, count)
    whole = replicated(lm.mesh)
    number, token = (
        jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=whole)
        for sizes in (lead, (*lead, lm.limits.response))
    )
    if objective.online:
        values = init_values(lm)
        trained = trained | described(values, shardings_like_params(values, lm.mesh))
        targets, forward, loss = PPOTargets(*[token] * 5), ppo_forward(lm), ppo_loss(config.ppo)
    else:
        targets = Targets(token, token, number, number)
        chosen = {name: config.objective[name] for name in hyper_parameters(objective)}
        loss = functools.partial(objective.loss, **chosen)
        branches = count > 1 and lm.transformer.attention.branches
        forward = policy_forward(lm.transformer, chunk=lm.logprob_chunk, branches=branches)
    tx, opt_state = _optimizer_state(lm, config, trained)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    state, grid = TrainState(step, trained, opt_state), _grid(lm, shape)
    update = make_update(forward, loss, tx, jax.random.key(0), state)
    sums = jax.eval_shape(update.zeros, trained, frozen, grid, targets)
    outputs = jax.tree.map(lambda leaf: whole, sums[1])
    sums = described(sums, (shardings_like_params(sums[0], lm.mesh), outputs))
    one = flops.forward(
        {**frozen, **trained},
        lm.transformer.config,
        tokens=shape.tokens,
        pairs=_pairs(lm, shape, count),
        head_tokens=shape.rows * shape.targets,
    )
    work = step_flops(lm, one, head_again=shape.rows * shape.targets)
    arguments = (sums, trained, frozen, grid, targets, step, step)
    weights = (trained, frozen)
    return Program("policy step", update.add, arguments, weights, opt_state, opt_state, work, shape)


def decode_program(lm: LanguageModel, config: ConfigDict, room: float) -> Program:
    """Prefill of the longest prompts, then all decoding steps of the longest response.

    It also runs between steps of `fit_policy`, so the optimizer state is in memory too. Adapters
    are folded into a copy of the base by the rule of `LanguageModel.for_decoding`.
    """
    trained, frozen = lm.abstract()
    optimizer = _optimizer_state(lm, config, trained)[1]
    decoding = deterministic_decoding(config.decode)
    sampling = dataclasses.replace(decoding, end=(*lm.tokenizer.ends, *decoding.end))
    rows, width = config.decode.batch_size, lm.prompt_widths[-1]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    keys = described(keys, replicated(lm.mesh))
    read = Prompts(
        *[_rows(lm, (rows, width), jnp.int32)] * 3,
        _rows(lm, (lm.shards, rows // lm.shards, width), jnp.int32),
    )
    model, params, kept = lm.transformer, {**frozen, **trained}, {}
    if model.nf4 is None:
        copied = {path: frozen[path] for path in folded_paths(trained)}
        free = room - bytes_per_device((trained, frozen, optimizer))
        if 0 < ROOM * bytes_per_device(copied) < free:
            model, params, kept = dataclasses.replace(model, lora=None), frozen, (trained, copied)
    work = flops.decoding(
        params,
        model.config,
        rows=rows,
        beams=sampling.beams,
        prompt=width,
        new=sampling.max_new_tokens,
    )
    arguments = (params, read, keys)
    idle, function = (optimizer, kept), make_decoder(model, sampling)
    return Program("decode", function, arguments, (params, kept), optimizer, idle, work, None)
