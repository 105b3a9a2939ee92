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
from alol_jax.devices.sharding import ROWS, replicated, shardings_like_params
from alol_jax.models.adapters import folded_paths
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import ROOM, LanguageModel
from alol_jax.objectives.ppo import PPOTargets
from alol_jax.objectives.registry import Objective, hyper_parameters, num_responses
from alol_jax.text.packing import GridShape, pack
from alol_jax.training import flops
from alol_jax.training.annotate import annotator
from alol_jax.training.costs import step_flops
from alol_jax.training.fit import TrainState, make_update, policy_loss
from alol_jax.training.online import Minibatch, init_values, ppo_loss
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Batch, Grid, Tokens

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


def programs_of(
    lm: LanguageModel, config: ConfigDict, objective: Objective, room: float
) -> dict[str, Callable[[], Program]]:
    """Name -> builder of the program, for the programs that need most memory and time.

    Each is for the longest of ``lm.shapes``. `select` is left out if the objective does not read
    what it computes.

    Args:
        room: bytes of memory on each chip.
    """
    builders = {
        "select": lambda: select_program(lm, config, objective),
        "policy step": lambda: policy_program(lm, config, objective),
        "decode": lambda: decode_program(lm, config, room),
    }
    if not {"ref_logp", "advantage"} & set(objective.reads):
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


def _tokens(lm: LanguageModel, lead: tuple[int, ...], responses: int, axis: int) -> Tokens:
    """Tokens of the longest shape: ``lead`` rows, with K responses each if K > 1."""
    prompt, response = lm.shapes[-1]
    each = lead if responses == 1 else (*lead, responses)
    rows = functools.partial(_rows, lm, axis=axis)
    return Tokens(
        rows((*lead, prompt), jnp.int32),
        rows((*lead, prompt), jnp.float32),
        rows((*each, response), jnp.int32),
        rows((*each, response), jnp.float32),
    )


def select_program(lm: LanguageModel, config: ConfigDict, objective: Objective) -> Program:
    """The forward pass that annotates a grid of training rows, full of the longest ones."""
    trained, frozen = lm.abstract()
    params, architecture = {**frozen, **trained}, lm.transformer.config
    (prompt, response), logp = lm.shapes[-1], "ref_logp" in objective.reads
    rows = config.select.batch_size
    prompts, responses = np.full((2, rows), [[prompt], [response * logp]])
    shards = lm.mesh.shape["data"] * lm.mesh.shape["fsdp"]
    width = prompt + response
    shape, _ = pack(prompts, responses, width=width, most=rows, multiple=shards)
    head, value_params = None, {}
    work = flops.forward(
        params,
        architecture,
        rows=shape.rows,
        width=shape.width,
        head_tokens=shape.rows * shape.targets * logp,
    ).total
    if "advantage" in objective.reads:
        head = ValueHead(architecture.width, 1.0, config.value.heads, config.value.dropout)
        init = functools.partial(head.init, mean_reward=0.5)
        value_params = jax.eval_shape(init, jax.random.key(0))
        value_params = described(value_params, shardings_like_params(value_params, lm.mesh))
        work += flops.value_head(architecture.width, rows=shape.rows, prompt=shape.width)
    function = annotator(lm.transformer, head, lm.logprob_chunk, logp)
    arguments = (params, value_params, _grid(lm, shape))
    return Program("select", function, arguments, (params, value_params), (), (), work)


def _grid(lm: LanguageModel, shape: GridShape) -> Grid:
    """A grid of these sizes."""
    whole, slots, targets = (
        (shape.rows, size) for size in (shape.width, shape.slots, shape.targets)
    )
    sizes = (whole, whole, whole, slots, targets, targets)
    return Grid(*(_rows(lm, s, jnp.int32) for s in sizes), _rows(lm, targets, jnp.float32))


def _optimizer_state(lm: LanguageModel, config: ConfigDict, trained: Any) -> tuple[Any, Any]:
    """The policy's optimizer and a description of its state."""
    tx = make_optimizer(config.policy.optimizer, steps=1)
    opt_state = jax.eval_shape(tx.init, trained)
    return tx, described(opt_state, shardings_like_params(opt_state, lm.mesh))


def policy_program(lm: LanguageModel, config: ConfigDict, objective: Objective) -> Program:
    """One optimizer step of the policy, or of the reference if its batch is larger."""
    trained, frozen = lm.abstract()
    fitting = config.ppo if objective.online else config.policy
    fits = config.reference.epochs > 0
    lead = (fitting.accumulate, max(fitting.batch_size, fits * config.reference.batch_size))
    count = num_responses(objective, config.objective)
    tokens = _tokens(lm, lead, count, 1)
    if objective.online:
        values = init_values(lm)
        trained = trained | described(values, shardings_like_params(values, lm.mesh))
        batch = Minibatch(tokens, PPOTargets(*[tokens.mask] * 5))
        loss = ppo_loss(lm, config.ppo)
    else:
        number = _rows(lm, tokens.response.shape[:-1], jnp.float32, axis=1)
        batch = Batch(tokens, tokens.mask, number, number)
        chosen = {name: config.objective[name] for name in hyper_parameters(objective)}
        bound = functools.partial(objective.loss, **chosen)
        loss = policy_loss(lm.transformer, bound, chunk=lm.logprob_chunk)
    tx, opt_state = _optimizer_state(lm, config, trained)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(lm.mesh))
    state = TrainState(step, trained, opt_state)
    function = make_update(loss, tx, jax.random.key(0), state)
    work = lead[0] * step_flops(lm, lm.shapes[-1], lead[1], lead[1], count)
    weights = (trained, frozen)
    return Program("policy step", function, (state, frozen, batch), weights, opt_state, (), work)


def decode_program(lm: LanguageModel, config: ConfigDict, room: float) -> Program:
    """Prefill of the longest prompts, then all decoding steps of the longest response.

    It also runs between steps of `fit_policy`, so the optimizer state is in memory too. Adapters
    are folded into a copy of the base by the rule of `LanguageModel.for_decoding`.
    """
    trained, frozen = lm.abstract()
    optimizer = _optimizer_state(lm, config, trained)[1]
    decoding = deterministic_decoding(config.decode)
    sampling = dataclasses.replace(decoding, end=(lm.tokenizer.eos_id, *decoding.end))
    rows, width = config.decode.batch_size, lm.prompt_widths[-1]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    keys = described(keys, replicated(lm.mesh))
    prompt, mask = (_rows(lm, (rows, width), dtype) for dtype in (jnp.int32, jnp.float32))
    model, params, kept = lm.transformer, {**frozen, **trained}, {}
    copied = {path: frozen[path] for path in folded_paths(trained)}
    free = room - bytes_per_chip((trained, frozen, optimizer))
    if model.nf4 is None and 0 < ROOM * bytes_per_chip(copied) < free:
        model, params, kept = dataclasses.replace(model, lora=None), frozen, (trained, copied)
    work = flops.decoding(
        params,
        model.config,
        rows=rows,
        beams=sampling.beams,
        prompt=width,
        new=sampling.max_new_tokens,
    )
    arguments = (params, prompt, mask, keys)
    idle, function = (optimizer, kept), make_decoder(model, sampling)
    return Program("decode", function, arguments, (params, kept), optimizer, idle, work)


def bytes_per_chip(tree: Any) -> float:
    """The bytes of described arrays that are on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
