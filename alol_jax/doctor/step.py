"""A training step of a tiny model, compiled and run."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.devices.sharding import place_like_params
from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.objectives.losses import nll
from alol_jax.text.packing import GridShape, Layout, to_grid
from alol_jax.training.batches import place_batch
from alol_jax.training.fit import init_state, make_update, policy_forward
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Batch, Targets, Work

PROMPT, RESPONSE = 96, 32  # tokens; together a multiple of what every attention kernel needs
MODEL = ConfigDict(
    {
        "path": "random:llama-tiny",
        "dtype": "bfloat16",
        "quantisation": "none",
        "attention": "auto",
        "remat": "full",
        "logprob_chunk": 4096,
        "max_prompt": PROMPT,
        "max_response": RESPONSE,
        "width": PROMPT + RESPONSE,
        "rows": 0,
        "adapter": "",
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0, "modules": ("all-linear",)},
    }
)
OPTIMIZER = ConfigDict(
    {
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup": 0,
        "b1": 0.9,
        "b2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
)


def open_tiny_model(mesh: Mesh) -> LanguageModel:
    """Open the tiny model as a run opens its own: it chooses the attention kernel."""
    return open_language_model(MODEL, mesh)


def training(lm: LanguageModel) -> str:
    """Compile and run a training step of a tiny model with random data.

    Raises:
        UserError: the loss is not finite.
    """
    rows, width = lm.shards, PROMPT + RESPONSE
    ids = np.random.default_rng(0).integers(0, 256, (rows, width), dtype=np.int32)
    grid = to_grid(
        [[row] for row in range(rows)],
        lambda row: (ids[row, :PROMPT], (ids[row, PROMPT:],)),
        GridShape(rows, width, RESPONSE, 1),
        Layout(RESPONSE, lm.transformer.attention.branches, lm.tokenizer.pad_id),
    )
    zeros = np.zeros(rows, np.float32)
    mask = np.ones((rows, RESPONSE), np.float32)
    batch = place_batch(Batch((grid,), Targets(mask, 0 * mask, zeros, zeros), Work()), lm.mesh)
    tx, key = make_optimizer(OPTIMIZER, steps=2), jax.random.key(0)
    state = place_like_params(init_state(lm.trainable(key), tx), lm.mesh)
    forward = policy_forward(lm.transformer, chunk=lm.logprob_chunk, branches=False)
    update, frozen = make_update(forward, nll, tx, key, state), lm.frozen()
    losses, seconds = [], []
    for _ in range(2):  # the first step also compiles
        began = time.monotonic()
        state, metrics = update(state, frozen, batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.monotonic() - began)
    if not np.isfinite(losses).all():
        raise UserError(f"the losses of a tiny model are {losses}: is the accelerator healthy?")
    return f"a step of a tiny model: {seconds[0]:.1f} s with compiling, then {seconds[1]:.3f} s"
