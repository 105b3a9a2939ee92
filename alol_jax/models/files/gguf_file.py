"""Reading and writing GGUF files (llama architecture): the only module that imports gguf.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A key that changes the computation or the
tokenizer and is not supported is an error that names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np

from alol_jax.errors import UserError
from alol_jax.models.config import ModelConfig
from alol_jax.models.files.finite import check_finite
from alol_jax.models.rotary import LinearScaling, Llama3Scaling, Rotary
from alol_jax.paths import check_no_pointer
from alol_jax.runs.progress import progress
from alol_jax.text.gguf_tokenizer import GGUFVocabulary
from alol_jax.types import Watch

_TYPES = frozenset(  # those that the library dequantises and that current files use
    gguf.GGMLQuantizationType[name]
    for name in "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
)

_READ = frozenset(
    "llama.block_count llama.context_length llama.embedding_length llama.feed_forward_length "
    "llama.attention.head_count llama.attention.head_count_kv llama.attention.key_length "
    "llama.attention.value_length llama.attention.layer_norm_rms_epsilon llama.rope.freq_base "
    "llama.rope.dimension_count llama.vocab_size".split()
)

# Keys that change the computation -> the value that is implemented.
_IMPLEMENTED: dict[str, Any] = {
    "general.architecture": "llama",
    "general.type": "model",
    "llama.rope.scaling.type": "none",
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
    "llama.attention.causal": True,
    "tokenizer.ggml.add_space_prefix": False,
    "split.count": 1,
    "split.no": 0,
}

# Keys of the tokenizer that `GGUFVocabulary` holds, or that our prompts and responses never need.
_TOKENIZER = frozenset(
    "tokenizer.chat_template tokenizer.chat_templates tokenizer.ggml.model tokenizer.ggml.pre "
    "tokenizer.ggml.tokens tokenizer.ggml.token_type tokenizer.ggml.merges tokenizer.ggml.scores "
    "tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id tokenizer.ggml.unknown_token_id "
    "tokenizer.ggml.padding_token_id tokenizer.ggml.add_bos_token tokenizer.ggml.add_eos_token "
    "tokenizer.ggml.seperator_token_id tokenizer.ggml.cls_token_id tokenizer.ggml.mask_token_id "
    "tokenizer.ggml.eot_token_id tokenizer.ggml.eom_token_id tokenizer.ggml.fim_pre_token_id "
    "tokenizer.ggml.fim_suf_token_id tokenizer.ggml.fim_mid_token_id "
    "tokenizer.ggml.fim_pad_token_id tokenizer.ggml.fim_rep_token_id "
    "tokenizer.ggml.fim_sep_token_id split.tensors.count".split()
)

_MORE_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")

_PROVENANCE = ("GGUF.", "general.", "quantize.")


class GGUFFile:
    """An open GGUF file. ``shapes`` are [out, in] as in PyTorch; tensors are read one at a time.

    Raises:
      UserError: the file is missing or damaged, is not a llama, or needs unsupported features.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        check_no_pointer(path)
        try:
            self._reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
            raise UserError(
                f"{path} is damaged or not a GGUF file ({error}): download it again"
            ) from error
        self._check_keys()
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in self._tensors.items():
            if tensor.tensor_type not in _TYPES:
                known = ", ".join(sorted(kind.name for kind in _TYPES))
                raise UserError(
                    f"{path}: {name} is stored as {tensor.tensor_type.name}, which is not "
                    f"supported: choose a file of {known}"
                )
            self.shapes[name] = tuple(int(n) for n in reversed(tensor.shape))

    def read(self, name: str) -> np.ndarray:
        """Read and dequantise the tensor ``name``: f32[shapes[name]].

        Raises:
          UserError: a number is NaN or infinite.
        """
        tensor = self._tensors[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = np.asarray(values, np.float32).reshape(self.shapes[name])
        return check_finite(self.path, name, values)

    def config(self) -> ModelConfig:
        """Return the ModelConfig.

        Missing optional keys have the defaults of the format: rope.freq_base 10000, a key/value
        head per query head. Without ``output.weight`` the embeddings are tied.
        """
        heads = self._size("llama.attention.head_count")
        width = self._size("llama.embedding_length")
        head_width = self._size_or("llama.attention.key_length", width // max(heads, 1))
        for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
            if self._size_or(key, head_width) != head_width:
                raise UserError(
                    f"{self.path}: {key} = {self._value(key)!r} is not implemented "
                    f"(only the head width, {head_width}, is)"
                )
        theta = self._value("llama.rope.freq_base")
        return ModelConfig(
            family="llama",
            vocab_size=self._size_or("llama.vocab_size", self._embedding_rows()),
            width=width,
            layers=self._size("llama.block_count"),
            heads=heads,
            kv_heads=self._size_or("llama.attention.head_count_kv", heads),
            head_width=head_width,
            mlp_width=self._size("llama.feed_forward_length"),
            max_positions=self._size("llama.context_length"),
            norm_epsilon=float(self._required("llama.attention.layer_norm_rms_epsilon")),
            rotary=Rotary(1e4 if theta is None else float(theta), head_width),
            tied_embeddings="output.weight" not in self.shapes,
        )

    def vocabulary(self) -> GGUFVocabulary:
        """Return the tokenizer fields; without ``add_bos_token``, no begin token is added."""
        return GGUFVocabulary(
            model=self._required("tokenizer.ggml.model"),
            pre=self._required("tokenizer.ggml.pre"),
            tokens=tuple(self._required("tokenizer.ggml.tokens")),
            token_types=tuple(self._required("tokenizer.ggml.token_type")),
            merges=tuple(self._value("tokenizer.ggml.merges") or ()),
            bos_id=self._value("tokenizer.ggml.bos_token_id"),
            eos_id=self._value("tokenizer.ggml.eos_token_id"),
            pad_id=self._value("tokenizer.ggml.padding_token_id"),
            add_bos=bool(self._value("tokenizer.ggml.add_bos_token")),
            chat_template=self._value("tokenizer.chat_template"),
            more_ends=tuple(i for i in map(self._value, _MORE_ENDS) if i is not None),
        )

    def _check_keys(self) -> None:
        # Architecture first: files of another one have unknown keys, which would hide the cause.
        self._required("general.architecture")
        for key in ("general.architecture", *self._reader.fields):
            if key in _IMPLEMENTED:
                if self._value(key) != _IMPLEMENTED[key]:
                    raise UserError(
                        f"{self.path}: {key} = {self._value(key)!r} is not implemented "
                        f"(only {_IMPLEMENTED[key]!r} is): choose another checkpoint"
                    )
            elif key not in _READ and key not in _TOKENIZER and not key.startswith(_PROVENANCE):
                raise UserError(
                    f"{self.path}: unknown key {key} = {self._value(key)!r}, which may change the "
                    "computation: choose another checkpoint"
                )

    def _value(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        try:
            return None if field is None else field.contents()
        except ValueError as error:  # text that is not UTF-8
            raise UserError(f"{self.path}: {key} is damaged ({error})") from error

    def _required(self, key: str) -> Any:
        value = self._value(key)
        if value is None:
            raise UserError(f"{self.path}: {key} is missing: the file is incomplete")
        return value

    def _size(self, key: str) -> int:
        value = self._required(key)
        if not isinstance(value, int):
            raise UserError(f"{self.path}: {key} must be one whole number, found {value!r}")
        return value

    def _size_or(self, key: str, default: int) -> int:
        return default if self._value(key) is None else self._size(key)

    def _embedding_rows(self) -> int:
        return self.shapes.get("token_embd.weight", (0,))[0]


# writing


class Tensors(Protocol):
    """Tensors by name, [out, in] as in PyTorch, made one at a time."""

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray: ...


STORED = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
"""dtype -> the type of matrices, and of the file; vectors are always float32."""


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the keys and values of a GGUF file that describe the model."""
    rotary = config.rotary
    found = {
        "general.type": "model",
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_positions,
        "llama.embedding_length": config.width,
        "llama.block_count": config.layers,
        "llama.feed_forward_length": config.mlp_width,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.key_length": config.head_width,
        "llama.attention.value_length": config.head_width,
        "llama.attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "llama.rope.dimension_count": rotary.width,
        "llama.rope.freq_base": rotary.theta,
    }
    if isinstance(rotary.scaling, LinearScaling):
        found["llama.rope.scaling.type"] = "linear"
        found["llama.rope.scaling.factor"] = rotary.scaling.factor
    return found


def rope_factors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Return the tensor of Llama 3's rope scaling: what divides each frequency, f32[H / 2].

    Empty for models without it: `config_fields` has the linear one.
    """
    if not isinstance(config.rotary.scaling, Llama3Scaling):
        return {}
    plain = dataclasses.replace(config.rotary, scaling=None).frequencies()
    return {"rope_freqs.weight": plain / config.rotary.frequencies()}


def write_gguf(
    file: Path,
    fields: Mapping[str, Any],
    tensors: Tensors,
    extra: Mapping[str, np.ndarray],
    dtype: str,
) -> None:
    """Write a GGUF file of the llama architecture, one tensor at a time.

    Args:
        fields: keys and values; texts, whole numbers, fractions, truth values, or tuples of one
            kind of these.
        tensors: the model's.
        extra: further vectors.
        dtype: a key of `STORED`.
    """
    matrix, kind = STORED[dtype]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_file_type(kind)
    for key, value in fields.items():
        _add_field(writer, key, value)
    shapes = dict(tensors.shapes) | {name: value.shape for name, value in extra.items()}
    types = {
        name: matrix if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        for name, shape in shapes.items()
    }
    for name, shape in shapes.items():
        size = 4 if types[name] is gguf.GGMLQuantizationType.F32 else 2
        count = int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), count * size, types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in progress(shapes, Watch("weights"), total=len(shapes)):
        value = extra[name] if name in extra else tensors.read(name)
        writer.write_tensor_data(gguf.quants.quantize(np.float32(value), types[name]))
    writer.close()


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp reads."""
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", tuple: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)
