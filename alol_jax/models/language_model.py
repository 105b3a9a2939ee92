"""The language model of a run: architecture, frozen base weights, tokenizer, mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.devices.sharding import param_sharding, place_params
from alol_jax.models.adapters import adapters_of, is_adapter, make_lora, trainable_summary
from alol_jax.models.attention import Attention, choose_kernel
from alol_jax.models.blocks import LoRA
from alol_jax.models.config import PRESETS, ModelConfig
from alol_jax.models.files.convert import Checkpoint, TokenizerFiles, open_checkpoint
from alol_jax.models.files.peft_adapter import Adapter, read_adapter
from alol_jax.models.nf4 import NF4
from alol_jax.models.transformer import Transformer, quantise_params
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokenizer_files import byte_level, from_directory, from_gguf
from alol_jax.text.tokens import Batching
from alol_jax.types import Params, UserError

RANDOM = "random:"
DTYPES = ("float32", "bfloat16")
QUANTISATIONS: dict[str, NF4 | None] = {
    "none": None,
    "nf4": NF4(double=False),
    "nf4-double": NF4(double=True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """What the stages share. The base weights are read at first use and then kept, once.

    Attributes:
        transformer: the pure functions.
        tokenizer: text <-> ids.
        mesh: where arrays live.
        shapes: the (P, R) pairs that are compiled for, ascending.
        logprob_chunk: tokens whose logits exist at once.
        options: ``config.model``; what lies at a path counts, not the path.
        checkpoint: where the base comes from; None for random weights.
        adapter: what training starts from; None for new adapters.
        notes: what was read and chosen, for the person who watches.
    """

    transformer: Transformer
    tokenizer: Tokenizer
    mesh: Mesh
    shapes: tuple[tuple[int, int], ...]
    logprob_chunk: int
    checkpoint: Checkpoint | None
    adapter: Adapter | None
    options: dict[str, Any]
    notes: tuple[str, ...]

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Changes with the options, the weights, the tokenizer or the adapter; reads all files."""
        placed = ("path", "adapter")
        weights = self.options["path"] if self.checkpoint is None else self.checkpoint.fingerprint()
        return {
            "config.model": {k: v for k, v in self.options.items() if k not in placed},
            "weights": weights,
            "tokenizer": self.tokenizer.fingerprint(),
            "adapter": None if self.adapter is None else self.adapter.fingerprint(),
        }

    @functools.cached_property
    def base(self) -> Params:
        """The frozen weights under LoRA, in the compute dtype or NF4, on the mesh."""
        return self._load(self.transformer.dtype, self.transformer.nf4)

    def trainable(self, key: jax.Array) -> Params:
        """The leaves that training starts from, float32: ``adapter``, new adapters, or, without
        LoRA, all weights."""
        if self.transformer.lora is None:
            return self._load(jnp.float32, None)
        if self.adapter is not None:
            return place_params(self.adapter.leaves, self.mesh)
        make = jax.jit(lambda key: adapters_of(self._unquantised.init(key)))
        return place_params(make(key), self.mesh)

    def frozen(self) -> Params:
        """The leaves that never train: the base under LoRA, nothing in full training."""
        return {} if self.transformer.lora is None else self.base

    def batching(self, size: int) -> Batching:
        """Batches of ``size`` prompts, at the prompt widths that are compiled for."""
        return Batching(self.prompt_widths, size, self.tokenizer.pad_id, self.mesh)

    def abstract(self) -> tuple[Params, Params]:
        """`fresh` and `frozen` without arrays: shape, dtype and sharding of every leaf."""
        leaves = jax.eval_shape(self.transformer.init, jax.random.key(0))
        adapted = self.transformer.lora is not None
        trained, frozen = {}, {}
        for path, leaf in leaves.items():
            trains = not adapted or is_adapter(path)
            kept = trains or path.rsplit("/", 1)[-1].startswith("nf4_")
            dtype = leaf.dtype if kept else self.transformer.dtype
            placed = param_sharding(path, leaf.shape, self.mesh)
            described = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=placed)
            (trained if trains else frozen)[path] = described
        return trained, frozen

    @property
    def _unquantised(self) -> Transformer:
        return dataclasses.replace(self.transformer, nf4=None)

    def _load(self, dtype: jax.typing.DTypeLike, nf4: NF4 | None) -> Params:
        if self.checkpoint is not None:
            where = functools.partial(param_sharding, mesh=self.mesh)
            return self.checkpoint.load(dtype, where, nf4)

        def make(key):
            # Without adapters, which would use up keys.
            made = dataclasses.replace(self._unquantised, lora=None).init(key)
            made = made if nf4 is None else quantise_params(made, nf4)
            return {
                path: leaf if leaf.dtype != jnp.float32 or "/nf4_" in path else leaf.astype(dtype)
                for path, leaf in made.items()
            }

        return place_params(jax.jit(make)(jax.random.key(0)), self.mesh)

    @property
    def prompt_widths(self) -> tuple[int, ...]:
        """The prompt lengths that are compiled for."""
        return tuple(sorted({width for width, _ in self.shapes}))


def open_language_model(options: ConfigDict, mesh: Mesh) -> LanguageModel:
    """The model that ``config.model`` describes; no weights are read yet.

    Raises:
        UserError: an unknown preset, an unreadable checkpoint, a model that cannot generate, too
            large a vocabulary, shapes that no model or batch can have, unknown choices.
    """
    if options.path.startswith(RANDOM):
        checkpoint, config, tokenizer = None, _preset(options.path[len(RANDOM) :]), byte_level()
    else:
        checkpoint = open_checkpoint(options.path)
        config, tokenizer = checkpoint.config, _tokenizer(checkpoint.tokenizer)
    _check_generates(options.path, checkpoint, config)
    tokenizer = tokenizer.for_vocab_size(config.vocab_size)
    shapes = _shapes(options.shapes, config.max_positions)
    if options.dtype not in DTYPES:
        raise UserError.unknown(
            f"config.model.dtype: no dtype {options.dtype!r}", options.dtype, DTYPES
        )
    adapter = _adapter(options, config)
    lora = _lora(options.lora, config) if adapter is None else adapter.lora
    transformer, kernel_said = _transformer(options, config, lora, shapes, mesh)
    lm = LanguageModel(
        transformer=transformer,
        tokenizer=tokenizer,
        mesh=mesh,
        shapes=shapes,
        logprob_chunk=options.logprob_chunk,
        checkpoint=checkpoint,
        adapter=adapter,
        options=options.to_dict(),
        notes=(
            f"model: {options.path}, {config.family} of {config.layers} layers × {config.width}, "
            f"{options.dtype}, quantisation {options.quantisation}",
            kernel_said,
            *([] if adapter is None else [f"adapter: {adapter}; config.model.lora is not read"]),
        ),
    )
    # Also finds out whether every kernel can be quantised, before anything has run.
    return dataclasses.replace(lm, notes=lm.notes + trainable_summary(*lm.abstract()))


def _preset(name: str) -> ModelConfig:
    if name not in PRESETS:
        raise UserError.unknown(f"config.model.path: no preset {name!r}", name, PRESETS)
    return PRESETS[name]


def _check_generates(path: str, checkpoint: Checkpoint | None, config: ModelConfig) -> None:
    headless = checkpoint is not None and not checkpoint.tied_head
    if headless or not config.causal:
        raise UserError(
            f"config.model.path {path!r} is no language model that can generate "
            f"({config.family if checkpoint is None else checkpoint.architecture}): "
            "choose a causal one"
        )


def _adapter(options: ConfigDict, config: ModelConfig) -> Adapter | None:
    """What ``config.model.adapter`` names."""
    if not options.adapter:
        return None
    if options.lora.rank == 0:
        raise UserError(
            "config.model.adapter: config.model.lora.rank = 0 trains every weight, and an adapter "
            "holds few: merge it into the base first, or leave the rank above 0"
        )
    return read_adapter(options.adapter, config)


def _lora(options: ConfigDict, config: ModelConfig) -> LoRA | None:
    """What ``config.model.lora`` describes."""
    return make_lora(
        config,
        rank=options.rank,
        alpha=options.alpha,
        dropout=options.dropout,
        modules=tuple(options.modules),
    )


def _transformer(
    options: ConfigDict,
    config: ModelConfig,
    lora: LoRA | None,
    shapes: tuple[tuple[int, int], ...],
    mesh: Mesh,
) -> tuple[Transformer, str]:
    """The pure functions that ``config.model`` describes, and which attention kernel runs, why."""
    if options.quantisation not in QUANTISATIONS:
        raise UserError.unknown(
            f"config.model.quantisation: no {options.quantisation!r}",
            options.quantisation,
            QUANTISATIONS,
        )
    nf4 = QUANTISATIONS[options.quantisation]
    if nf4 is not None and lora is None:
        raise UserError(
            "config.model.quantisation: a quantised base cannot train; give config.model.lora.rank "
            "above 0, or set quantisation to 'none'"
        )
    device = mesh.devices.flat[0]
    kernel, said = choose_kernel(
        options.attention,
        platform=device.platform,
        capability=str(getattr(device, "compute_capability", "")),
        dtype=options.dtype,
        head_width=config.head_width,
        widths=sorted({p for p, _ in shapes} | {p + r for p, r in shapes}),
    )
    dtype, attention = jnp.dtype(options.dtype), Attention(kernel, mesh)
    return Transformer(config, lora, dtype, options.remat, attention, nf4), said


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
