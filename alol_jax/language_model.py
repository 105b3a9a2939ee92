"""The language model of a run: architecture, frozen base weights, tokenizer, mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.models.adapters import adapters_of, make_lora
from alol_jax.models.config import PRESETS
from alol_jax.models.convert import Checkpoint, TokenizerFiles, open_checkpoint
from alol_jax.models.transformer import Transformer
from alol_jax.sharding import partition, place_params
from alol_jax.tokens import Tokenizer, byte_level, from_directory, from_gguf
from alol_jax.types import Params, UserError

RANDOM = "random:"
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """What the stages share. The base weights are read at first use and then kept, once.

    Attributes:
        transformer: the pure functions.
        tokenizer: text <-> ids.
        mesh: where arrays live.
        shapes: the (P, R) pairs that are compiled for, ascending.
        logprob_chunk: tokens whose logits exist at once.
        checkpoint: where the base comes from; None for random weights.
        fingerprint: changes with the weights, the tokenizer or anything above.
    """

    transformer: Transformer
    tokenizer: Tokenizer
    mesh: Mesh
    shapes: tuple[tuple[int, int], ...]
    logprob_chunk: int
    checkpoint: Checkpoint | None
    fingerprint: dict[str, Any]

    @functools.cached_property
    def base(self) -> Params:
        """The frozen weights under LoRA, in the compute dtype, on the mesh."""
        return self._load(self.transformer.dtype)

    def fresh(self, key: jax.Array) -> Params:
        """The leaves that training starts from: new adapters, or all weights (float32)."""
        if self.transformer.lora is None:
            return self._load(jnp.float32)
        make = jax.jit(lambda key: adapters_of(self.transformer.init(key)))
        return place_params(make(key), self.mesh)

    def frozen(self) -> Params:
        """The leaves that never train: the base under LoRA, nothing in full training."""
        return {} if self.transformer.lora is None else self.base

    def _load(self, dtype: jax.typing.DTypeLike) -> Params:
        if self.checkpoint is None:
            bare = dataclasses.replace(self.transformer, lora=None)  # adapters would use up keys
            made = jax.jit(bare.init)(jax.random.key(0))
            return place_params({p: leaf.astype(dtype) for p, leaf in made.items()}, self.mesh)

        def put(path, array):
            return jax.device_put(array, partition(path, array.shape, self.mesh))

        return self.checkpoint.load(dtype, put)

    @property
    def prompt_widths(self) -> tuple[int, ...]:
        """The prompt lengths that are compiled for."""
        return tuple(sorted({width for width, _ in self.shapes}))


def open_language_model(options: ConfigDict, mesh: Mesh) -> LanguageModel:
    """The model that ``config.model`` describes; no weights are read yet.

    Raises:
        UserError: an unknown preset, an unreadable checkpoint, too large a vocabulary, shapes that
            no model or batch can have.
    """
    lora = make_lora(
        rank=options.lora.rank,
        alpha=options.lora.alpha,
        dropout=options.lora.dropout,
        modules=tuple(options.lora.modules),
    )
    if options.path.startswith(RANDOM):
        preset = options.path[len(RANDOM) :]
        if preset not in PRESETS:
            raise UserError(
                f"config.model.path: no preset {preset!r}; there are {', '.join(sorted(PRESETS))}"
            )
        checkpoint, config, tokenizer = None, PRESETS[preset], byte_level()
    else:
        checkpoint = open_checkpoint(options.path)
        config, tokenizer = checkpoint.config, _tokenizer(checkpoint.tokenizer)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"config.model.path {options.path!r}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model only {config.vocab_size}"
        )
    shapes = _shapes(options.shapes, config.max_positions)
    if options.dtype not in DTYPES:
        raise UserError.unknown(
            f"config.model.dtype: no dtype {options.dtype!r}", options.dtype, DTYPES
        )
    transformer = Transformer(config, lora, jnp.dtype(options.dtype), options.remat)
    settings = {key: value for key, value in options.to_dict().items() if key != "path"}
    return LanguageModel(
        transformer=transformer,
        tokenizer=tokenizer,
        mesh=mesh,
        shapes=shapes,
        logprob_chunk=options.logprob_chunk,
        checkpoint=checkpoint,
        fingerprint={
            "config.model": settings,
            "weights": options.path if checkpoint is None else checkpoint.fingerprint(),
            "tokenizer": tokenizer.fingerprint(),
        },
    )


def _shapes(pairs: Any, positions: int) -> tuple[tuple[int, int], ...]:
    """The configured (P, R) pairs, ascending; the last one holds all the others."""
    good = all(isinstance(pair, tuple) and len(pair) == 2 and min(pair) >= 1 for pair in pairs)
    if not good or not pairs:
        raise UserError(
            f"config.model.shapes: {pairs} needs pairs of (prompt, response) ≥ (1, 1) like "
            "((512, 128),)"
        )
    shapes = tuple(sorted((int(p), int(r)) for p, r in pairs))
    if any(r > shapes[-1][1] for _, r in shapes):
        raise UserError(f"config.model.shapes: the last of {shapes} must hold all the others")
    if sum(shapes[-1]) > positions:
        raise UserError(
            f"config.model.shapes: {sum(shapes[-1])} tokens, the model has {positions} positions"
        )
    return shapes


def _tokenizer(files: TokenizerFiles) -> Tokenizer:
    if files.directory is not None:
        return from_directory(files.directory)
    return from_gguf(files.vocabulary)
