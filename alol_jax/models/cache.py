"""The key-value cache of decoding."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import ROWS


class Cache(NamedTuple):
    """A key-value cache of S columns per row; every row writes the same column.

    After the last column, writing goes on at ``first``: what lies there must be used no more.
    """

    k: jax.Array  # [L, B, G, H, S]
    v: jax.Array  # [L, B, G, S, H]
    places: jax.Array  # i32[B, S], the position of a column's token in its text; -1: no token
    slot: jax.Array  # i32[], the next column to write
    first: jax.Array  # i32[], the first column after the prompts
    position: jax.Array  # i32[B], the position of the next token

    @property
    def filled(self) -> jax.Array:
        """bool[B, S], True where a column holds a real token of the row."""
        return self.places >= 0

    def shardings(self, mesh: Mesh) -> Cache:
        """Return where each array lies on a mesh: shared out by row."""
        whole, rows, second = (NamedSharding(mesh, spec) for spec in (P(), P(ROWS), P(None, ROWS)))
        return Cache(second, second, rows, whole, whole, rows)

    def narrow(self, columns: int, *, room: int) -> Cache:
        """Keep the last P = ``columns`` columns of the prompts, and the ``room`` after them."""
        cut = self.places.shape[1] - room - columns
        return self._replace(
            k=self.k[..., cut:],
            v=self.v[:, :, :, cut:],
            places=self.places[:, cut:],
            slot=self.slot - cut,
            first=self.first - cut,
        )

    def take(self, beam: jax.Array) -> Cache:
        """Select n of the m beams of each prompt: B · m rows in, B · n rows out.

        Rows are gathered within one prompt, so that sharded rows stay on their device.

        Args:
            beam: i32[B, n], indices below m.
        """
        prompts, n = beam.shape

        def gather(x, axis):
            before, after = x.shape[:axis], x.shape[axis + 1 :]
            grouped = x.reshape(*before, prompts, -1, *after)
            place = beam.reshape((1,) * axis + beam.shape + (1,) * len(after))
            picked = jnp.take_along_axis(grouped, place, axis=axis + 1, mode="clip")
            return picked.reshape(*before, prompts * n, *after)

        return self._replace(
            k=gather(self.k, 1),
            v=gather(self.v, 1),
            places=gather(self.places, 0),
            position=gather(self.position, 0),
        )

    def refill(self, fresh: Cache, source: jax.Array) -> Cache:
        """Give some rows the prompt of a row of ``fresh``, a cache of prompts alone.

        Args:
            source: i32[D, B/D], the row of ``fresh`` in the same of D groups; −1 keeps the row.
        """
        new, width = fresh.take(jnp.maximum(source, 0)), fresh.places.shape[1]
        starts = (source >= 0).reshape(-1)

        def put(old, prompt, axis):
            before = jax.lax.slice_in_dim(old, 0, width, axis=axis)
            prompt = jnp.where(starts[None, :, None, None, None], prompt, before)
            return jax.lax.dynamic_update_slice_in_dim(old, prompt, 0, axis=axis)

        places = pad_places(new.places, self.places.shape[1] - width)
        return self._replace(
            k=put(self.k, new.k, 4),
            v=put(self.v, new.v, 3),
            places=jnp.where(starts[:, None], places, self.places),
            position=jnp.where(starts, new.position, self.position),
        )


def pad_places(places: jax.Array, room: int) -> jax.Array:
    """Add columns without a token."""
    return jnp.pad(places, ((0, 0), (0, room)), constant_values=-1)


def write(store, new, layer, slot):
    """Write keys and values [B, T, G, H] of a layer into a `Cache`'s, from ``slot`` on."""
    keys, values = jnp.transpose(new[0], (0, 2, 3, 1)), jnp.transpose(new[1], (0, 2, 1, 3))
    zero = jnp.int32(0)
    return (
        jax.lax.dynamic_update_slice(store[0], keys[None], (layer, zero, zero, zero, slot)),
        jax.lax.dynamic_update_slice(store[1], values[None], (layer, zero, zero, slot, zero)),
    )
