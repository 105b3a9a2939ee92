"""The form that a family has in GGUF files: what llama.cpp stores of it, and what it computes.

Keys are "arch.KEY"; ``arch.`` is left out here. Facts are those of llama.cpp: its converter
(conversion/), which says how weights are stored, and its models (src/models/), which say what is
computed from them. A reader returns the latter, so a model that its own file would not give back is
one that llama.cpp cannot compute; only a window of Phi-3, which llama.cpp reads and does not apply,
is returned because the model was trained with it, and none is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from alol_jax.errors import UserError
from alol_jax.models.config import ModelConfig
from alol_jax.models.families.layouts import (
    AS_IS,
    QKV,
    Kernel,
    Layout,
    Row,
    affine,
    decoder_rows,
    head,
    layer_norm,
    packed_qkv,
)
from alol_jax.models.rotary import LinearScaling, Rotary

_PROJECTIONS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
GGUF_KERNELS = tuple(Kernel(theirs, (ours,)) for ours, theirs in _PROJECTIONS.items())
GGUF_PRE_NORMS = {"attn_norm": "attention_norm", "ffn_norm": "mlp_norm"}

_SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "max_positions",
    "embedding_length": "width",
    "block_count": "layers",
    "feed_forward_length": "mlp_width",
    "attention.head_count": "heads",
    "attention.head_count_kv": "kv_heads",
}
_RMS_EPSILON = "attention.layer_norm_rms_epsilon"
_EPSILON = {  # by the kind of norm
    "rms": _RMS_EPSILON,
    "rms_plus_one": _RMS_EPSILON,
    "layer": "attention.layer_norm_epsilon",
}
_ONLY = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True}
_HEAD_WIDTH = ("attention.key_length", "attention.value_length")


class Keys:
    """Typed access to the keys of one file, which remembers what was asked for.

    Args:
        where: the file, for messages.
        instead: what to do instead, for messages.
        values: all keys of the architecture, without ``arch.``.
        shapes: the names and shapes of all tensors.
        vector: reads one of them.

    Raises:
        UserError: (by any method) the value is missing, of another kind, or not implemented.
    """

    def __init__(
        self,
        where: str,
        instead: str,
        arch: str,
        values: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        vector: Callable[[str], np.ndarray],
    ) -> None:
        self.shapes, self.values = shapes, values
        self._where, self._instead, self._arch, self._vector = where, instead, arch, vector
        self._asked: set[str] = set()
        self.vectors: set[str] = set()

    def _value(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        value = self.values.get(key, default)
        if value is None:
            raise UserError(f"{self._where}: {self._arch}.{key} is missing: the file is incomplete")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number; ``default`` if there is no such key."""
        value = self._value(key, default)
        if not isinstance(value, int):
            raise UserError(
                f"{self._where}: {self._arch}.{key} must be one whole number, found {value!r}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number; ``default`` if there is no such key."""
        value = self._value(key, default)
        if not isinstance(value, int | float):
            raise UserError(f"{self._where}: {self._arch}.{key} must be a number, found {value!r}")
        return float(value)

    def only(self, key: str, *known: Any) -> Any:
        """Return one of the values that are implemented; the first if there is no such key."""
        found = self._value(key, known[0])
        if found not in known:
            raise UserError(
                f"{self._where}: {self._arch}.{key} = {found!r} is not implemented (only "
                f"{', '.join(map(repr, known))} is): {self._instead}"
            )
        return found

    def vector(self, name: str) -> tuple[float, ...] | None:
        """Return a tensor that belongs to the architecture, not to its weights; None without it."""
        if name not in self.shapes:
            return None
        self.vectors.add(name)
        return tuple(self._vector(name).reshape(-1).tolist())

    def check_all_asked(self) -> None:
        """Raise UserError if there is a key that nothing has asked for."""
        for key, value in self.values.items():
            if key not in self._asked:
                raise UserError(
                    f"{self._where}: unknown key {self._arch}.{key} = {value!r}, which may change "
                    f"the computation: {self._instead}"
                )


def gguf_decoder(
    keys: Keys,
    family: str,
    *,
    own_heads: bool = True,
    partial: bool = False,
    rotates: bool = True,
    norm: str = "rms",
) -> ModelConfig:
    """Read what the architectures have in common.

    Missing keys have the defaults of the format: rope.freq_base 10000, a key/value head per query
    head. Without ``output.weight`` the embeddings are tied.

    Args:
        own_heads: whether a head may have another width than D / N.
        partial: whether a part of a head may be rotated.
        rotates: whether positions are rotary.
        norm: a key of `blocks.NORMS`.
    """
    width, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    head_width = width // max(heads, 1)
    if own_heads:
        head_width = keys.size("attention.key_length", head_width)
    for key in _HEAD_WIDTH:
        keys.only(key, head_width)
    for key, value in _ONLY.items():
        keys.only(key, value)
    return ModelConfig(
        family=family,
        vocab_size=keys.size("vocab_size", keys.shapes.get("token_embd.weight", (0,))[0]),
        width=width,
        layers=keys.size("block_count"),
        heads=heads,
        kv_heads=keys.size("attention.head_count_kv", heads),
        head_width=head_width,
        mlp_width=keys.size("feed_forward_length"),
        max_positions=keys.size("context_length"),
        norm_epsilon=keys.number(_EPSILON[norm]),
        rotary=_rotary(keys, head_width, partial) if rotates else None,
        tied_embeddings="output.weight" not in keys.shapes,
        norm=norm,
    )


def _rotary(keys: Keys, head_width: int, partial: bool) -> Rotary:
    width = keys.size("rope.dimension_count", head_width)
    if not partial:
        keys.only("rope.dimension_count", head_width)
    scaling = None
    if keys.only("rope.scaling.type", "none", "linear") == "linear":
        scaling = LinearScaling(keys.number("rope.scaling.factor"))
    return Rotary(keys.number("rope.freq_base", 1e4), width, scaling)


def stored_biases(keys: Keys) -> tuple[str, ...]:
    """Return the projections whose biases are stored."""
    stored = (
        ours for ours, theirs in _PROJECTIONS.items() if f"blk.0.{theirs}.bias" in keys.shapes
    )
    return tuple(stored)


def decoder_keys(config: ModelConfig) -> dict[str, Any]:
    """Return the keys that `gguf_decoder` reads."""
    found = {key: getattr(config, name) for key, name in _SIZES.items()}
    found |= dict.fromkeys(_HEAD_WIDTH, config.head_width)
    found[_EPSILON[config.norm]] = config.norm_epsilon
    if config.rotary is None:
        return found
    found |= {"rope.dimension_count": config.rotary.width, "rope.freq_base": config.rotary.theta}
    if isinstance(config.rotary.scaling, LinearScaling):
        found["rope.scaling.type"] = "linear"
        found["rope.scaling.factor"] = config.rotary.scaling.factor
    return found


def gguf_rows(
    norms: Mapping[str, str],
    kernels: Iterable[Kernel] = GGUF_KERNELS,
    *,
    biases: Iterable[str] = (),
    norm: Layout = AS_IS,
) -> tuple[Row, ...]:
    """Return the tensors of a decoder with its head, by `decoder_rows`."""
    names = ("token_embd", "blk.{i}", "output_norm")
    rows = decoder_rows(names, norms, tuple(kernels), biases=biases, norm=norm)
    return (*rows, *head("output"))


FUSED_GGUF = (
    Row("token_embd.weight", ("embed/embedding",), AS_IS),
    *layer_norm("blk.{i}.attn_norm", "layers/attention_norm"),
    *layer_norm("blk.{i}.ffn_norm", "layers/mlp_norm"),
    *packed_qkv("blk.{i}.attn_qkv", QKV, QKV),
    *affine("blk.{i}.attn_output", "layers/o_proj"),
    *affine("blk.{i}.ffn_up", "layers/up_proj"),
    *affine("blk.{i}.ffn_down", "layers/down_proj"),
    *layer_norm("output_norm", "final_norm"),
    *head("output"),
)
"""What GPT-2 and GPT-NeoX have in common."""


@dataclasses.dataclass(frozen=True)
class GGUFForm:
    """The form of a family in GGUF files.

    Attributes:
        arch: ``general.architecture``.
        rows: all tensors.
        read: the keys -> the architecture that llama.cpp computes.
        keys: ModelConfig -> the keys, without ``arch.``.
        vectors: ModelConfig -> the tensors that belong to it, not to the weights.
    """

    arch: str
    rows: tuple[Row, ...]
    read: Callable[[Keys], ModelConfig]
    keys: Callable[[ModelConfig], dict[str, Any]] = decoder_keys
    vectors: Callable[[ModelConfig], dict[str, np.ndarray]] = lambda config: {}
