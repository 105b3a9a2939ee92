"""The language model of a run: architecture, frozen base weights, tokenizer, mesh."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.models.adapters import adapters_of, is_adapter, make_lora
from alol_jax.models.config import PRESETS
from alol_jax.models.convert import Checkpoint, TokenizerFiles, open_checkpoint
from alol_jax.models.transformer import Transformer
from alol_jax.sharding import partition, place_params
from alol_jax.tokens import Tokenizer, byte_level, from_directory, from_gguf
from alol_jax.types import Params, UserError

RANDOM = "random:"


@dataclasses.dataclass(frozen=True)
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
    fingerprint: str

    @functools.cached_property
    def base(self) -> Params:
        """The weights on the mesh: in the compute dtype under LoRA, float32 in full training."""
        dtype = jnp.float32 if self.transformer.lora is None else self.transformer.dtype
        if self.checkpoint is None:
            bare = dataclasses.replace(self.transformer, lora=None)  # adapters would use up keys
            made = jax.jit(bare.init)(jax.random.key(0))
            params = {path: leaf.astype(dtype) for path, leaf in made.items()}
            return place_params(params, self.mesh)

        def put(path, array):
            return jax.device_put(array, partition(path, array.shape, self.mesh))

        return self.checkpoint.load(dtype, put)

    def fresh(self, key: jax.Array) -> Params:
        """The leaves that training starts from: new adapters, or the base itself without LoRA."""
        if self.transformer.lora is None:
            return self.base
        make = jax.jit(lambda key: adapters_of(self.transformer.init(key)))
        return place_params(make(key), self.mesh)

    def frozen(self) -> Params:
        """The leaves that never train: the base under LoRA, nothing in full training."""
        return {} if self.transformer.lora is None else self.base

    @property
    def prompt_widths(self) -> tuple[int, ...]:
        """The prompt lengths that are compiled for."""
        return tuple(sorted({width for width, _ in self.shapes}))

    def trains(self, path: str) -> bool:
        """Does this leaf train?"""
        return self.transformer.lora is None or is_adapter(path)


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
    shapes = tuple(sorted((int(p), int(r)) for p, r in options.shapes))
    if not shapes or min(map(min, shapes)) < 1:
        raise UserError(f"config.model.shapes: {shapes} needs pairs of (prompt, response) ≥ (1, 1)")
    if any(r > shapes[-1][1] for _, r in shapes):
        raise UserError(f"config.model.shapes: the last of {shapes} must hold all the others")
    longest = sum(shapes[-1])
    if longest > config.max_positions:
        raise UserError(
            f"config.model.shapes: {longest} tokens, the model has {config.max_positions} positions"
        )
    transformer = Transformer(config, lora, jnp.dtype(options.dtype), options.remat)
    content = "random" if checkpoint is None else checkpoint.fingerprint()
    described = f"{content} {tokenizer.fingerprint()} {options.to_json(sort_keys=True)}"
    return LanguageModel(
        transformer=transformer,
        tokenizer=tokenizer,
        mesh=mesh,
        shapes=shapes,
        logprob_chunk=options.logprob_chunk,
        checkpoint=checkpoint,
        fingerprint=hashlib.blake2b(described.encode(), digest_size=16).hexdigest(),
    )


def _tokenizer(files: TokenizerFiles) -> Tokenizer:
    if files.directory is not None:
        return from_directory(files.directory)
    return from_gguf(files.vocabulary)
