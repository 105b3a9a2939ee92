"""The language model of a run: architecture, frozen base weights, tokenizer and mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.devices.sharding import bytes_per_device, param_sharding, place_params, shards
from alol_jax.errors import UserError
from alol_jax.models.adapters import (
    adapters_of,
    folded,
    folded_paths,
    is_adapter,
    make_lora,
    trainable_summary,
)
from alol_jax.models.attention import Attention, choose_kernel
from alol_jax.models.blocks import LoRA
from alol_jax.models.config import ModelConfig
from alol_jax.models.files.convert import Checkpoint, TokenizerFiles, open_checkpoint
from alol_jax.models.files.peft_adapter import Adapter, read_adapter, with_changes
from alol_jax.models.grid_sizes import (
    GridOptions,
    Packed,
    grid_options,
    pack_table,
    platform_of,
    prompt_widths,
)
from alol_jax.models.kernels import KERNELS
from alol_jax.models.nf4 import NF4
from alol_jax.models.presets import PRESETS
from alol_jax.models.transformer import REMAT, Transformer, quantise_params
from alol_jax.text.gguf_tokenizer import from_gguf
from alol_jax.text.prompts import in_chat
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokenizer_files import byte_level, from_directory
from alol_jax.text.tokens import Batching
from alol_jax.types import Limits, Params, is_chat

RANDOM = "random:"
ROOM = 2.0  # a copy of the kernels is made where it takes at most half of what is free
DTYPES = ("float32", "bfloat16")
LAYOUT = ("remat", "logprob_chunk", "width", "rows", "fit")  # how a pass is laid out in memory
QUANTISATIONS: dict[str, NF4 | None] = {
    "none": None,
    "nf4": NF4(double=False),
    "nf4-double": NF4(double=True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """The model that all stages share. Base weights are loaded at first use and then kept.

    Attributes:
        transformer: the pure functions.
        tokenizer: the tokenizer of the model.
        mesh: the device mesh of all arrays.
        limits: the most tokens of a prompt and of a response.
        grid: the size of grids.
        logprob_chunk: the number of tokens whose logits exist at once.
        checkpoint: the source of the base weights; None for random weights.
        adapter: the adapter that training starts from; None for new adapters.
        options: ``config.model``.
        notes: lines for the log: what was loaded and chosen.
    """

    transformer: Transformer
    tokenizer: Tokenizer
    mesh: Mesh
    limits: Limits
    grid: GridOptions
    logprob_chunk: int
    checkpoint: Checkpoint | None
    adapter: Adapter | None
    options: dict[str, Any]
    notes: tuple[str, ...]

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Identifies options, weights, tokenizer and adapter; reads all files to compute it.

        For ``path`` and ``adapter`` the content of the files counts, not their location. The
        fields of `LAYOUT` may change between two starts of a run: its results are the same beyond
        rounding (and the masks of dropout).
        """
        left_out = ("path", "adapter", *LAYOUT)
        weights = self.options["path"] if self.checkpoint is None else self.checkpoint.fingerprint()
        return {
            "config.model": {k: v for k, v in self.options.items() if k not in left_out},
            "weights": weights,
            "tokenizer": self.tokenizer.fingerprint(),
            "adapter": None if self.adapter is None else self.adapter.fingerprint(),
        }

    @property
    def commits(self) -> dict[str, str]:
        """The commits that were read of repositories on the hub, by the names in the config."""
        read = {"path": self.checkpoint, "adapter": self.adapter}
        return {
            self.options[key]: files.commit
            for key, files in read.items()
            if files is not None and files.commit
        }

    @functools.cached_property
    def base(self) -> Params:
        """The base weights on the mesh, in the compute dtype or NF4; LoRA training freezes them."""
        return self._load(self.transformer.dtype, self.transformer.nf4)

    def trainable(self, key: jax.Array) -> Params:
        """Return the initial trainable leaves, float32.

        These are ``adapter``, new adapters, or, without LoRA, all weights.
        """
        if self.transformer.lora is None:
            return self._load(jnp.float32, None)
        if self.adapter is not None and self.adapter.lora is not None:
            return place_params(self.adapter.leaves, self.mesh)
        make = jax.jit(lambda key: adapters_of(self._unquantised.init(key)))
        return place_params(make(key), self.mesh)

    def frozen(self) -> Params:
        """Return the frozen leaves: the base with LoRA, none in full fine-tuning."""
        return {} if self.transformer.lora is None else self.base

    def for_decoding(self, trained: Params) -> tuple[Transformer, Params]:
        """Return a model and its parameters on the mesh, as fast to decode with as can be.

        Adapters are folded into a copy of the base where it is not quantised and the devices have
        room for the copy: an adapter costs a decoding step about as much as a small kernel does.
        """
        model, placed = self.transformer, place_params(trained, self.mesh)
        if model.lora is None or model.nf4 is not None or not self._has_room_for(placed):
            return model, {**self.frozen(), **placed}
        plain = dataclasses.replace(model, lora=None)
        return plain, {**self.base, **self._fold(self.base, placed)}

    @functools.cached_property
    def _fold(self) -> Callable[[Params, Params], Params]:
        trained, frozen = self.abstract()
        placed = {path: frozen[path].sharding for path in folded_paths(trained)}
        fold = functools.partial(folded, lora=self.transformer.lora)
        return jax.jit(fold, out_shardings=placed)

    def _has_room_for(self, adapters: Params) -> bool:
        """Whether every device can hold the kernels of these adapters once more."""
        copied = bytes_per_device({path: self.base[path] for path in folded_paths(adapters)})
        stats = [device.memory_stats() or {} for device in self.mesh.local_devices]
        return all(
            s["bytes_limit"] - s["bytes_in_use"] > ROOM * copied
            for s in stats
            if "bytes_limit" in s
        )

    def batching(self, size: int, lengths: np.ndarray | None = None) -> Batching:
        """Return batching of ``size`` prompts at the compiled prompt widths.

        Args:
            lengths: of all prompts that will come, see `Batching`.
        """
        multiple = max(KERNELS[self.transformer.attention.kernel].multiple, 8)
        doubling = platform_of(self.mesh).doubling
        pad_id, widths = self.tokenizer.pad_id, self.prompt_widths
        return Batching(widths, size, pad_id, self.mesh, multiple, lengths, doubling)

    def pack_table(self, prompts: np.ndarray, responses: np.ndarray) -> Packed:
        """Pack the examples of a table, of these lengths, i64[N] each, into grids."""
        return pack_table(self.transformer.config, self.mesh, self.grid, prompts, responses)

    def abstract(self) -> tuple[Params, Params]:
        """Return the shape, dtype and sharding of the leaves of `trainable` and `frozen`."""
        return self._described

    @functools.cached_property
    def _described(self) -> tuple[Params, Params]:
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
            sharding = functools.partial(param_sharding, mesh=self.mesh)
            return self.checkpoint.load(dtype, sharding, nf4)

        def make(key):
            # Without adapters: their keys would change the base weights.
            made = dataclasses.replace(self._unquantised, lora=None).init(key)
            made = made if nf4 is None else quantise_params(made, nf4)
            return {
                path: leaf if leaf.dtype != jnp.float32 or "/nf4_" in path else leaf.astype(dtype)
                for path, leaf in made.items()
            }

        return place_params(jax.jit(make)(jax.random.key(0)), self.mesh)

    def for_template(self, template: str) -> LanguageModel:
        """Return the model for prompts of ``config.task.template``.

        With the model's own chat template, responses end as it ends a turn.

        Raises:
            UserError: the model has no chat template, or it fails.
        """
        if not is_chat(template):
            return self
        return dataclasses.replace(self, tokenizer=in_chat(self.tokenizer))

    @property
    def prompt_widths(self) -> tuple[int, ...]:
        """The compiled lengths of prompts in decoding, ascending."""
        return prompt_widths(self.limits.prompt, self.mesh)

    @property
    def shards(self) -> int:
        """The number of devices that share out the rows of a batch."""
        return shards(self.mesh)


def open_language_model(options: ConfigDict, mesh: Mesh) -> LanguageModel:
    """Open the model that ``config.model`` describes, without reading weights.

    Raises:
        UserError: the preset or an option is unknown, the checkpoint is unreadable, the model
            cannot generate, the tokenizer has too many tokens, or a limit or the size of grids is
            invalid.
    """
    if options.path.startswith(RANDOM):
        checkpoint, config, tokenizer = None, _preset(options.path[len(RANDOM) :]), byte_level()
    else:
        checkpoint = open_checkpoint(options.path)
        config, tokenizer = checkpoint.config, _tokenizer(checkpoint.tokenizer)
    _check_generates(options.path, checkpoint, config)
    tokenizer = tokenizer.for_vocab_size(config.vocab_size)
    limits = _limits(options, config.longest)
    config = config.for_texts(sum(limits))
    grid = grid_options(options.width, options.rows, limits, mesh)
    if options.dtype not in DTYPES:
        raise UserError.unknown(
            f"config.model.dtype: no dtype {options.dtype!r}", options.dtype, DTYPES
        )
    adapter = _adapter(options, config)
    if adapter is not None and adapter.changes:
        checkpoint = with_changes(checkpoint, adapter)
    lora = adapter.lora if adapter is not None else None
    lora = lora or _lora(options.lora, config)
    widths = (*prompt_widths(limits.prompt, mesh), *filter(None, (grid.width, grid.width // 2)))
    stored = None if checkpoint is None else checkpoint.stored_nf4
    transformer, kernel_said = _transformer(options, config, lora, widths, mesh, stored)
    lm = LanguageModel(
        transformer=transformer,
        tokenizer=tokenizer,
        mesh=mesh,
        limits=limits,
        grid=grid,
        logprob_chunk=options.logprob_chunk,
        checkpoint=checkpoint,
        adapter=adapter,
        options=options.to_dict(),
        notes=(
            f"model: {options.path}, {config.family} of {config.layers} layers × {config.width}, "
            f"{options.dtype}, quantisation {options.quantisation}",
            kernel_said,
            *([] if adapter is None else [f"adapter: {adapter}"]),
        ),
    )
    # `abstract` also checks that every kernel can be quantised, before anything has run.
    return dataclasses.replace(lm, notes=lm.notes + trainable_summary(*lm.abstract()))


def _preset(name: str) -> ModelConfig:
    if name not in PRESETS:
        raise UserError.unknown(f"config.model.path: no preset {name!r}", name, PRESETS)
    return PRESETS[name]


def _check_generates(path: str, checkpoint: Checkpoint | None, config: ModelConfig) -> None:
    headless = checkpoint is not None and not checkpoint.tied_head
    if headless or not config.causal:
        raise UserError(
            f"config.model.path {path!r} is not a language model that can generate "
            f"({config.family if checkpoint is None else checkpoint.architecture}): "
            "choose a causal one"
        )


def _adapter(options: ConfigDict, config: ModelConfig) -> Adapter | None:
    """Read the adapter of ``config.model.adapter``, if any."""
    if not options.adapter:
        return None
    if options.lora.rank == 0:
        raise UserError(
            "config.model.adapter: config.model.lora.rank = 0 trains every weight, but an adapter "
            "has only a few: merge it into the base first, or set a rank above 0"
        )
    return read_adapter(options.adapter, config)


def _lora(options: ConfigDict, config: ModelConfig) -> LoRA | None:
    """Return the LoRA of ``config.model.lora``, if any."""
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
    widths: Sequence[int],
    mesh: Mesh,
    stored: NF4 | None,
) -> tuple[Transformer, str]:
    """Return the transformer of ``config.model``, and which attention kernel runs and why."""
    if options.quantisation not in QUANTISATIONS:
        raise UserError.unknown(
            f"config.model.quantisation: no {options.quantisation!r}",
            options.quantisation,
            QUANTISATIONS,
        )
    nf4 = QUANTISATIONS[options.quantisation]
    if stored not in (None, nf4):
        name = next(name for name, kind in QUANTISATIONS.items() if kind == stored)
        raise UserError(
            f"config.model.quantisation={options.quantisation!r}: {options.path} is stored in 4 "
            f"bits: set it to {name!r}"
        )
    if nf4 is not None and lora is None:
        raise UserError(
            "config.model.quantisation: a quantised base cannot train; give config.model.lora.rank "
            "above 0, or set quantisation to 'none'"
        )
    if options.remat not in REMAT:
        raise UserError.unknown(
            f"config.model.remat: no policy {options.remat!r}", options.remat, REMAT
        )
    device = mesh.devices.flat[0]
    kernel, said = choose_kernel(
        options.attention,
        platform=device.platform,
        capability=str(getattr(device, "compute_capability", "")),
        dtype=options.dtype,
        head_width=config.head_width,
        widths=widths,
        cap=config.attention.cap,
    )
    dtype, attention = jnp.dtype(options.dtype), Attention(kernel, mesh)
    return Transformer(config, lora, dtype, options.remat, attention, nf4), said


def _limits(options: ConfigDict, positions: int) -> Limits:
    """Return the most tokens of a prompt and of a response."""
    limits = Limits(options.max_prompt, options.max_response)
    for name, value in zip(("max_prompt", "max_response"), limits, strict=True):
        if value < 1:
            raise UserError(f"config.model.{name}={value} must be 1 or more")
    if sum(limits) > positions:
        raise UserError(
            f"config.model.max_prompt + max_response = {limits.prompt} + {limits.response}: the "
            f"model has {positions} positions"
        )
    return limits


def _tokenizer(files: TokenizerFiles) -> Tokenizer:
    if files.directory is not None:
        return from_directory(files.directory)
    return from_gguf(files.vocabulary)
