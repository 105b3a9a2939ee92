"""Reading and writing GGUF files: the only module that imports gguf.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A key that changes the computation or the
tokenizer and is not supported is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gguf
import numpy as np

from alol_jax.errors import UserError
from alol_jax.models.config import ModelConfig, differences
from alol_jax.models.families.gguf_form import Keys
from alol_jax.models.families.layouts import Row, rows_of
from alol_jax.models.families.registry import FAMILIES, GGUF_FORMS
from alol_jax.models.files.finite import check_finite
from alol_jax.models.transformer import param_shapes
from alol_jax.paths import check_no_pointer
from alol_jax.runs.progress import progress
from alol_jax.text.gguf_tokenizer import GGUFVocabulary
from alol_jax.types import Watch

_TYPES = frozenset(  # those that the library dequantises and that current files use
    gguf.GGMLQuantizationType[name]
    for name in "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
)

# Keys that change the computation, besides those of the architecture -> what is implemented.
_IMPLEMENTED: dict[str, Any] = {
    "general.type": "model",
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


class WeightFiles(Protocol):
    """Named tensors, [out, in] as in PyTorch, read or made one at a time."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray: ...


class GGUFFile:
    """An open GGUF file. ``shapes`` are [out, in] as in PyTorch; tensors are read one at a time.

    Attributes:
        arch: ``general.architecture``, a key of `GGUF_FORMS`.
        config: the architecture.
        shapes: the weights.

    Raises:
      UserError: the file is missing or damaged, is of another architecture, or needs unsupported
        features.
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
        self.arch = self._known_arch()
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
        self.config = self._config()

    def read(self, name: str) -> np.ndarray:
        """Read and dequantise the tensor ``name``: f32[shapes[name]].

        Raises:
          UserError: a number is NaN or infinite.
        """
        tensor = self._tensors[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = np.asarray(values, np.float32).reshape(self.shapes[name])
        return check_finite(self.path, name, values)

    def _known_arch(self) -> str:
        found = self._required("general.architecture")
        if found not in GGUF_FORMS:
            raise UserError(
                f"{self.path}: general.architecture = {found!r} is not implemented (only "
                f"{', '.join(GGUF_FORMS)} are): choose another checkpoint"
            )
        return found

    def _config(self) -> ModelConfig:
        """Read the architecture; tensors that belong to it are no weights any more."""
        start = f"{self.arch}."
        values = {
            key.removeprefix(start): self._value(key)
            for key in self._reader.fields
            if key.startswith(start)
        }
        instead = "choose another checkpoint"
        keys = Keys(str(self.path), instead, self.arch, values, self.shapes, self.read)
        config = GGUF_FORMS[self.arch].read(keys)
        keys.check_all_asked()
        for name in keys.vectors:
            del self.shapes[name]
        return config

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
        """Check the keys that are not of the architecture."""
        for key in self._reader.fields:
            if key in _IMPLEMENTED:
                if self._value(key) != _IMPLEMENTED[key]:
                    raise UserError(
                        f"{self.path}: {key} = {self._value(key)!r} is not implemented "
                        f"(only {_IMPLEMENTED[key]!r} is): choose another checkpoint"
                    )
            elif key not in _TOKENIZER and not key.startswith((*_PROVENANCE, f"{self.arch}.")):
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


# writing


STORED = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
"""dtype -> the type of matrices, and of the file; vectors and positions are always float32."""
_POSITIONS = "position_embd.weight"


class Described(NamedTuple):
    """What a file says of a model: its keys, its tensors, and vectors of the architecture."""

    keys: dict[str, Any]
    rows: tuple[Row, ...]
    vectors: dict[str, np.ndarray]


def described(config: ModelConfig) -> Described:
    """Return what a file says of a model.

    Raises:
        UserError: llama.cpp cannot compute it, so its own file would not give it back.
    """
    form = FAMILIES[config.family].gguf
    if form is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.gguf)
        raise UserError(
            f"--what=gguf: {config.family} is not written as GGUF (only {known} are): "
            "use --what=merged"
        )
    values, vectors, rows = form.keys(config), form.vectors(config), rows_of(form.rows, config)
    ours = param_shapes(config)
    shapes = {
        name: row.stored_shape(config, ours) for row in rows for name in row.names(config)
    } | {name: vector.shape for name, vector in vectors.items()}
    instead = "use --what=merged"
    keys = Keys("--what=gguf", instead, form.arch, values, shapes, vectors.__getitem__)
    for name, wanted, found in differences(config, form.read(keys)):
        raise UserError(
            f"--what=gguf: {name} = {wanted!r} of this {config.family} has no form in llama.cpp, "
            f"whose {form.arch} computes with {found!r}: {instead}"
        )
    fields = {f"{form.arch}.{key}": value for key, value in values.items()}
    start = {"general.architecture": form.arch, "general.type": "model"}
    return Described(start | fields, rows, vectors)


def write_gguf(
    file: Path,
    fields: dict[str, Any],
    tensors: WeightFiles,
    extra: Mapping[str, np.ndarray],
    dtype: str,
) -> None:
    """Write a GGUF file, one tensor at a time.

    Args:
        fields: keys and values; texts, whole numbers, fractions, truth values, or tuples of one
            kind of these. With ``general.architecture``.
        tensors: the model's.
        extra: further vectors.
        dtype: a key of `STORED`.
    """
    matrix, kind = STORED[dtype]
    fields = dict(fields)
    writer = gguf.GGUFWriter(file, fields.pop("general.architecture"))
    writer.add_file_type(kind)
    for key, value in fields.items():
        _add_field(writer, key, value)
    shapes = dict(tensors.shapes) | {name: value.shape for name, value in extra.items()}
    types = {
        name: matrix if len(shape) > 1 and name != _POSITIONS else gguf.GGMLQuantizationType.F32
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
