"""Fitting a value head on frozen hidden states, for V(x) and for distilled rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.devices.sharding import place_like_params, place_params, place_rows
from alol_jax.models.heads import ValueHead
from alol_jax.models.transformer import Transformer
from alol_jax.runs.progress import progress
from alol_jax.text.tokens import Batching, to_tokens
from alol_jax.training.fit import TrainState, Update, fit, init_state, make_update
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Params, Watch


class Features(NamedTuple):
    """Hidden states and rewards of texts, on the host."""

    hidden: np.ndarray  # f32[N, T, D]
    mask: np.ndarray  # f32[N, T]
    reward: np.ndarray  # f32[N]


def features_of(
    model: Transformer,
    params: Params,
    rows: Sequence[Sequence[int]],
    reward: np.ndarray,
    *,
    batching: Batching,
    watch: Watch,
) -> Features:
    """Compute the hidden states of ``rows``, left-padded to the largest width.

    Args:
        rows: token ids, none longer than the largest width.
        reward: f64[rows].
    """
    widest = max(batching.widths)
    hidden_of = jax.jit(model.hidden)
    hidden = np.zeros((len(rows), widest, model.config.width), np.float32)
    mask = np.zeros((len(rows), widest), np.float32)
    pieces = batching.batches([len(row) for row in rows])
    for width, piece in progress(pieces, watch, total=len(pieces)):
        chosen = [rows[index] for index in np.resize(piece, batching.size)]
        tokens = to_tokens(chosen, [()] * batching.size, shape=(width, 1), pad_id=batching.pad_id)
        placed = place_rows((tokens.prompt, tokens.prompt_mask), batching.mesh)
        states = np.asarray(hidden_of(params, *placed), np.float32)
        hidden[piece, widest - width :] = states[: len(piece)]
        mask[piece, widest - width :] = tokens.prompt_mask[: len(piece)]
    return Features(hidden, mask, reward.astype(np.float32))


def _full_batches(rows: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (rows, rows repeated up to ``size``) of each batch, so that one shape is compiled."""
    pieces = (rows[first : first + size] for first in range(0, len(rows), size))
    return [(piece, np.resize(piece, size)) for piece in pieces]


@dataclasses.dataclass(frozen=True, eq=False)
class HeadFitter:
    """Fits a value head by minimising mean (V − R)². Many fits share one compilation.

    Attributes:
        head: the value head.
        tx: the optimizer; update: its jitted step; predict: the jitted head.
        batch_size: rows per step.
        seed: of the initial weights and the row order.
        mesh: the device mesh.
    """

    head: ValueHead
    tx: Any
    update: Update
    predict: Callable[..., jax.Array]
    batch_size: int
    seed: int
    mesh: Mesh

    def epochs(self, data: Features, rows: np.ndarray, epochs: int) -> Iterator[tuple[int, Params]]:
        """Fit a head on ``rows`` and yield (epoch, parameters) for epochs 0 … ``epochs``.

        At epoch 0 the head predicts about the mean reward of ``rows``.
        """
        mean = float(data.reward[rows].mean())
        state = _start(self.head, self.tx, self.mesh, self.seed, mean)
        yield 0, state.trained
        size = self.batch_size
        per_epoch = -(-len(rows) // size)

        def batches():
            for epoch in range(epochs):
                order = np.random.default_rng([self.seed, epoch]).permutation(rows)
                for first in range(0, per_epoch * size, size):
                    chosen = np.take(order, np.arange(first, first + size), mode="wrap")
                    batch = jax.tree.map(lambda x, chosen=chosen: x[chosen][None], data)
                    yield place_rows(batch, self.mesh, axis=1)

        for step, reached, _ in fit(state, {}, batches(), self.update):
            if step % per_epoch == 0:
                yield step // per_epoch, reached.trained

    def predicted(self, params: Params, data: Features, rows: np.ndarray) -> np.ndarray:
        """Predict the value of each of ``rows``: f32[rows]."""
        pieces = []
        for piece, chosen in _full_batches(rows, self.batch_size):
            placed = place_rows((data.hidden[chosen], data.mask[chosen]), self.mesh)
            pieces.append(np.asarray(self.predict(params, *placed))[: len(piece)])
        return np.concatenate(pieces)


def make_head_fitter(
    head: ValueHead, options: ConfigDict, *, rows: int, mesh: Mesh, seed: int
) -> HeadFitter:
    """Make a fitter for about ``rows`` rows.

    Args:
        options: ``epochs``, ``batch_size`` and ``optimizer``.
        seed: of the initial weights, dropout and the row order.
    """
    tx = make_optimizer(options.optimizer, steps=options.epochs * -(-rows // options.batch_size))

    def loss_fn(trained, frozen, batch, key):
        error = head(trained, batch.hidden, batch.mask, key) - batch.reward
        mse = jnp.mean(error * error)
        return mse, (jnp.float32(error.shape[0]), {"mse": mse})

    key = jax.random.fold_in(jax.random.key(seed), 3)
    update = make_update(loss_fn, tx, key, _start(head, tx, mesh, seed, 0.0))
    return HeadFitter(head, tx, update, jax.jit(head), options.batch_size, seed, mesh)


def _start(head: ValueHead, tx, mesh: Mesh, seed: int, mean_reward: float) -> TrainState:
    """Return the initial state, on the mesh, of a head that predicts about ``mean_reward``."""
    params = head.init(jax.random.fold_in(jax.random.key(seed), 4), mean_reward)
    return place_like_params(init_state(place_params(params, mesh), tx), mesh)
