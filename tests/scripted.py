"""A language model that says what a script says: decoding can be watched without a network."""

import dataclasses
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from alol_jax.decoding.prompts import in_columns
from alol_jax.devices.sharding import ROWS
from alol_jax.types import Unembedding


class Line(NamedTuple):
    """The cache: the line of each row, and how far it has been said."""

    tokens: jax.Array  # i32[B, length]
    place: jax.Array  # i32[B]

    def shardings(self, mesh):
        rows = NamedSharding(mesh, PartitionSpec(ROWS))
        return Line(rows, rows)

    def narrow(self, columns, *, room):
        return self

    def refill(self, fresh, source):
        groups, starts = source.shape[0], source.reshape(-1) >= 0
        rows = jnp.maximum(source, 0) + len(fresh.place) // groups * jnp.arange(groups)[:, None]
        rows = rows.reshape(-1)
        return Line(
            jnp.where(starts[:, None], fresh.tokens[rows], self.tokens),
            jnp.where(starts, fresh.place[rows], self.place),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Scripted:
    """The last token of the prompt chooses the line of the script that is said, whatever else is
    asked; ``steps`` collects one entry per decoded token.
    """

    lines: tuple[tuple[int, ...], ...]  # all of one length
    vocab_size: int
    steps: list = dataclasses.field(default_factory=list)

    def unembedding(self, params):
        return Unembedding(100.0 * jnp.eye(self.vocab_size))

    dtype = jnp.dtype("float32")
    nf4 = lora = None

    @property
    def config(self):
        return types.SimpleNamespace(width=self.vocab_size, vocab_size=self.vocab_size)

    def empty_cache(self, rows, width, room):
        return Line(jnp.zeros((rows, len(self.lines[0])), jnp.int32), jnp.zeros(rows, jnp.int32))

    def prefill(self, params, prompts, *, room):
        tokens, _ = in_columns(prompts)
        line = jnp.array(self.lines)[tokens[:, -1]]
        return self._say(line[:, 0]), Line(line, jnp.zeros(len(tokens), jnp.int32))

    def decode_step(self, params, token, cache):
        jax.debug.callback(self.steps.append, cache.place[0])
        place = jnp.minimum(cache.place + 1, cache.tokens.shape[1] - 1)
        said = jnp.take_along_axis(cache.tokens, place[:, None], axis=1)[:, 0]
        return self._say(said), Line(cache.tokens, place)

    def _say(self, token):
        return jax.nn.one_hot(token, self.vocab_size)
