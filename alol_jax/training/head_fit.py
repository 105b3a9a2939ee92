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

from alol_jax.devices.out_of_memory import watching_memory
from alol_jax.devices.sharding import fetch, own_part, place_like_params, place_params, place_rows
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import LanguageModel
from alol_jax.models.savings import PASS, program_of
from alol_jax.models.transformer import Transformer
from alol_jax.runs.progress import progress
from alol_jax.text.packing import Layout, texts_alone, to_grid
from alol_jax.training.fit import TrainState, Update, fit, init_state, make_update
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Batch, Params, Watch, Work


class Features(NamedTuple):
    """Hidden states and rewards of N texts, on the host: real tokens alone, in the model's dtype.

    Text n has the states ``start[n]`` to ``start[n] + length[n]``.
    """

    states: np.ndarray  # [tokens of all texts, D]
    start: np.ndarray  # i64[N]
    length: np.ndarray  # i64[N]
    reward: np.ndarray  # f32[N]

    def padded(self, rows: np.ndarray) -> HeadInputs:
        """The states of some texts, padded to the length of the longest text of all."""
        states = np.zeros((len(rows), int(self.length.max()), self.states.shape[1]), np.float32)
        mask = np.zeros(states.shape[:2], np.float32)
        for place, row in enumerate(rows):
            start, length = self.start[row], self.length[row]
            states[place, :length] = self.states[start : start + length]
            mask[place, :length] = 1.0
        return HeadInputs(states, mask)


class HeadInputs(NamedTuple):
    """What a head reads."""

    hidden: jax.Array  # f32[B, P, D]
    mask: jax.Array  # f32[B, P]


def features_of(
    lm: LanguageModel,
    model: Transformer,
    params: Params,
    rows: Sequence[Sequence[int]],
    reward: np.ndarray,
    *,
    watch: Watch,
) -> Features:
    """Compute the hidden states of ``rows``, packed side by side.

    Args:
        model: that of ``lm``, with or without adapters, and ``params`` its parameters.
        rows: token ids.
        reward: f64[rows].
    """

    @jax.jit
    def hidden_of(params, grid):
        return model.hidden(params, grid.ids, grid.segment, positions=grid.position)

    length = np.array([len(row) for row in rows], np.int64)
    start = np.cumsum(length) - length
    states = np.zeros((length.sum(), model.config.width), jnp.dtype(model.dtype))
    layout = Layout(length=0, share=True, pad_id=lm.tokenizer.pad_id)
    grids = lm.pack_table(length, np.zeros_like(length)).grids
    example = texts_alone(rows)

    program = program_of(lm, PASS, watch.label, *(grids[0][0][:2] if grids else (0, 0)))
    with watching_memory(program):
        for size, members in progress(grids, watch, total=len(grids)):
            grid = to_grid(own_part(members, size.rows, lm.mesh), example, size, layout)
            found = fetch(hidden_of(params, place_rows(grid, lm.mesh)))
            for row, texts in enumerate(members):
                at = 0
                for text in texts:
                    first, tokens = start[text], length[text]
                    states[first : first + tokens] = found[row, at : at + tokens]
                    at += tokens
    return Features(states, start, length, reward.astype(np.float32))


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
                    inputs = place_rows(data.padded(chosen), self.mesh)
                    yield Batch((inputs,), place_rows(data.reward[chosen], self.mesh), Work())

        for step, reached, _ in fit(state, {}, batches(), self.update):
            if step % per_epoch == 0:
                yield step // per_epoch, reached.trained

    def predicted(self, params: Params, data: Features, rows: np.ndarray) -> np.ndarray:
        """Predict the value of each of ``rows``: f32[rows]."""
        pieces = []
        for piece, chosen in _full_batches(rows, self.batch_size):
            placed = place_rows(data.padded(chosen), self.mesh)
            pieces.append(fetch(self.predict(params, *placed))[: len(piece)])
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

    def forward(trained, frozen, inputs, reward, key):
        return head(trained, *inputs, key)

    def squared_error(values, reward):
        mse = jnp.mean(jnp.square(values - reward))
        return mse, {"mse": mse}

    key = jax.random.fold_in(jax.random.key(seed), 3)
    update = make_update(forward, squared_error, tx, key, _start(head, tx, mesh, seed, 0.0))
    return HeadFitter(head, tx, update, jax.jit(head), options.batch_size, seed, mesh)


def _start(head: ValueHead, tx, mesh: Mesh, seed: int, mean_reward: float) -> TrainState:
    """Return the initial state, on the mesh, of a head that predicts about ``mean_reward``."""
    params = head.init(jax.random.fold_in(jax.random.key(seed), 4), mean_reward)
    return place_like_params(init_state(place_params(params, mesh), tx), mesh)
