"""LoRA adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors.

adapter_model.bin, which older versions of PEFT wrote, is read where there is no safetensors file.

PEFT stores A as (r, in) and B as (out, r) and adds alpha/r · B A to a linear map (alpha/√r with
``use_rslora``). A packed query-key-value map has one A and one B in PEFT but three adapters here.
Reading copies A and splits B like the kernel. Writing n adapters of rank r concatenates their A to
rank n · r and makes B block-wise, with zeros outside each adapter's own rows and columns; with
n · alpha the scale stays alpha/r. Both are exact.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.errors import UserError, format_names
from alol_jax.models.blocks import LoRA
from alol_jax.models.config import ModelConfig
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.layouts import AS_IS, CONCATENATED, Row
from alol_jax.models.families.registry import FAMILIES
from alol_jax.models.files.hf_reader import HUB_NAME, HubFiles, TensorFiles, copied, download
from alol_jax.models.files.hf_writer import write_json, write_tensors
from alol_jax.models.files.peft_config import (
    CONFIG,
    TORCH_WEIGHTS,
    WEIGHTS,
    common_scale,
    config_json,
    is_target,
    rank_and_scale,
    read_fields,
    weights_file,
)
from alol_jax.models.transformer import is_block_kernel, param_shapes
from alol_jax.paths import is_bucket

_PREFIX = "base_model.model."
ADAPTER_FILES = HubFiles((CONFIG,), (WEIGHTS,), (TORCH_WEIGHTS,))


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter in memory.

    Attributes:
        folder: the directory it was read from.
        base: the base model that its config names; "" if none.
        lora: rank, alpha, dropout and modules.
        leaves: ``layers/<module>/lora_a`` f32[L, in, r] and ``lora_b`` f32[L, r, out].
    """

    folder: Path
    base: str
    lora: LoRA
    leaves: dict[str, np.ndarray]

    def fingerprint(self) -> str:
        """Return the blake2b hash of its settings and weights, as 32 hex digits."""
        digest = hashlib.blake2b(repr(self.lora).encode(), digest_size=16)
        for path, leaf in sorted(self.leaves.items()):
            digest.update(path.encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()

    def __str__(self) -> str:
        lora = self.lora
        return (
            f"{self.folder}, made for {self.base or 'a base without a name'}: rank {lora.rank}, "
            f"alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {', '.join(lora.modules)}"
        )


# reading


def read_adapter(path: str | Path, config: ModelConfig) -> Adapter:
    """Read the adapter in a PEFT directory or of a hub name, for a model of ``config``.

    All modules get the largest rank of any (``rank_pattern``). Lower ranks are padded with zeros,
    which stay zero in training. Adapters packed by `write_adapter` are separated again.

    Raises:
        UserError: a file is missing or damaged, or holds more than tensors; a field needs something
            that is not implemented; or the weights do not match the model or adapter_config.json.
    """
    folder = copied(path, ADAPTER_FILES) if is_bucket(path) else Path(path).expanduser()
    if not folder.exists() and HUB_NAME.fullmatch(str(path)):
        folder = download(str(path), ADAPTER_FILES)
    fields = read_fields(folder)
    weights = TensorFiles([weights_file(folder)])
    rows = _adapted_rows(folder, weights, config)
    _check_targets(fields, rows, config)
    scales = {}
    for row in rows:
        for module in _modules(row, config):
            scales[module] = rank_and_scale(fields, module)
    _check_shapes(folder, weights, rows, config, scales)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for row in rows:
        rank = max(scales[module][0] for module in _modules(row, config))
        a, b = _stacked(weights, row, config, rank)
        parts |= _unpacked(row, config, a, b, fields.size("r"))
    rank = max(a.shape[2] for a, _ in parts.values())
    leaves = {}
    for path, (a, b) in parts.items():
        leaves[f"{path}/lora_a"] = _padded(a, 2, rank)
        leaves[f"{path}/lora_b"] = _padded(b, 1, rank)
    dropout = fields.number("lora_dropout", 0.0)
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"{fields.where}: lora_dropout = {dropout} must be in [0, 1)")
    names = tuple(name for name in config.projections if f"layers/{name}" in parts)
    lora = LoRA(rank, float(common_scale(fields, scales) * rank), dropout, names)
    return Adapter(folder, str(fields.values.get("base_model_name_or_path") or ""), lora, leaves)


def _adapted_rows(folder: Path, weights: TensorFiles, config: ModelConfig) -> list[Row]:
    """Return the rows of the kernels that have adapters."""
    tensors = {
        row: [
            f"{_PREFIX}{module}.lora_{factor}.weight"
            for module in _modules(row, config)
            for factor in "AB"
        ]
        for row in _kernel_rows(config)
    }
    found = [row for row, names in tensors.items() if any(n in weights.shapes for n in names)]
    expected = [name for row in found for name in tensors[row]]
    missing = [name for name in expected if name not in weights.shapes]
    unexpected = sorted(set(weights.shapes) - set(expected))
    if missing or unexpected or not found:
        raise UserError(
            f"{folder} is an adapter for another base than this {config.family} of {config.layers} "
            f"layers: missing {format_names(missing)}; unexpected {format_names(unexpected)}"
        )
    return found


def _check_targets(fields: Fields, rows: Sequence[Row], config: ModelConfig) -> None:
    """Raise UserError unless ``target_modules`` names exactly the modules with weights.

    PEFT drops the weights of modules that are not named and creates new ones for named modules
    without weights. Neither is the trained adapter.
    """
    unnamed, empty = [], []
    for row in _kernel_rows(config):
        for module in _modules(row, config):
            named = is_target(fields, module, row in rows)
            if named != (row in rows):
                (empty if named else unnamed).append(module)
    if unnamed or empty:
        raise UserError(
            f"{fields.where}: target_modules and the weights differ: "
            f"not named: {format_names(unnamed)}; named but without weights: {format_names(empty)}"
        )


def _check_shapes(
    folder: Path,
    weights: TensorFiles,
    rows: Sequence[Row],
    config: ModelConfig,
    scales: Mapping[str, tuple[int, Fraction]],
) -> None:
    sizes = _sizes(config)
    wrong = []
    for row in rows:
        inputs = sizes[row.paths[0]][0]
        outputs = sum(sizes[path][1] for path in row.paths)
        for module in _modules(row, config):
            rank = scales[module][0]
            for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                name = f"{_PREFIX}{module}.lora_{factor}.weight"
                if weights.shapes[name] != shape:
                    wrong.append(f"{name} {weights.shapes[name]}, expected {shape}")
    if wrong:
        raise UserError(
            f"{folder} is an adapter for another base, or of another rank than {CONFIG} says: "
            f"{format_names(wrong)}"
        )


def _stacked(
    weights: TensorFiles, row: Row, config: ModelConfig, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B of all layers: f32[L, in, rank] and f32[L, out, rank]."""
    a, b = [], []
    for module in _modules(row, config):
        for factor, stack, axis in (("A", a, 0), ("B", b, 1)):
            stored = weights.read(f"{_PREFIX}{module}.lora_{factor}.weight").astype(np.float32)
            stack.append(_padded(stored, axis, rank))
    return np.stack(a).swapaxes(1, 2), np.stack(b)


def _unpacked(
    row: Row, config: ModelConfig, a: np.ndarray, b: np.ndarray, rank: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return module path -> (A f32[L, in, r], B f32[L, r, out]).

    `write_adapter` packs each part into its own ``rank`` columns of B, with zeros for the other
    parts. If every such run of columns belongs to one part, each part gets its run; else every part
    shares A.
    """
    oriented = (layer.T if _stores_inputs_first(row) else layer for layer in b)
    layers = [row.layout.split(config, layer) for layer in oriented]
    each = [np.stack(part) for part in zip(*layers, strict=True)]
    paths = [path.removesuffix("/kernel") for path in row.paths]
    whole = {path: (a, part) for path, part in zip(paths, each, strict=True)}
    if len(paths) == 1 or a.shape[2] % rank:
        return whole
    runs = [slice(start, start + rank) for start in range(0, a.shape[2], rank)]
    users = [[i for i, part in enumerate(each) if part[:, run].any()] for run in runs]
    owners = {found[0]: run for found, run in zip(users, runs, strict=True) if len(found) == 1}
    if len(owners) < len(runs):
        return whole
    return {paths[i]: (a[:, :, run], each[i][:, run]) for i, run in owners.items()}


def _padded(x: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Pad ``axis`` of ``x`` with zeros to length ``rank``."""
    padding = [(0, rank - x.shape[axis]) if i == axis else (0, 0) for i in range(x.ndim)]
    return np.pad(x, padding)


# writing


def write_adapter(
    folder: Path, config: ModelConfig, lora: LoRA, leaves: Mapping[str, Any], base: str
) -> None:
    """Write an adapter for ``peft.PeftModel.from_pretrained``, with float32 weights.

    Args:
        folder: an existing directory.
        config: the architecture of the base.
        lora: rank, alpha, dropout and modules.
        leaves: as in `Adapter.leaves`.
        base: path or hub name of the base model, for users of the adapter.
    """
    tensors: dict[str, np.ndarray] = {}
    for row in _kernel_rows(config):
        names = [name for name in _names(row) if name in lora.modules]
        for layer, module in enumerate(_modules(row, config) if names else ()):
            of = {
                name: [np.asarray(leaves[f"layers/{name}/lora_{x}"][layer]) for x in "ab"]
                for name in names
            }
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.concatenate(
                [a for a, _ in of.values()], axis=1
            ).T
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = _packed(row, config, of)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, shapes, "float32", tensors.__getitem__)
    write_json(folder / CONFIG, _config_json(config, lora, base))


def _packed(row: Row, config: ModelConfig, of: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Return B as PEFT stores it, (out, n · r), from the (A [in, r], B [r, out]) of each part."""
    rank, out = next(iter(of.values()))[1].shape
    parts, start = [], 0
    for name in _names(row):
        part = np.zeros((rank * len(of), out), np.float32)
        if name in of:
            part[start : start + rank] = of[name][1]
            start += rank
        parts.append(part)
    stored = np.asarray(row.layout.join(config, parts))
    return stored.T if _stores_inputs_first(row) else stored


def _config_json(config: ModelConfig, lora: LoRA, base: str) -> dict[str, Any]:
    rows = {row: [n for n in _names(row) if n in lora.modules] for row in _kernel_rows(config)}
    others = [_tail(row) for row, names in rows.items() if not names]
    adapted = {row: names for row, names in rows.items() if names}
    counts = {_target(row, others): len(names) for row, names in adapted.items()}
    return config_json(lora, base, counts, any(map(_stores_inputs_first, adapted)))


def _target(row: Row, others: Sequence[str]) -> str:
    """Return the shortest suffix of the module name that is not a suffix of one of ``others``."""
    words = _tail(row).split(".")
    ends = [".".join(words[i:]) for i in reversed(range(len(words)))]
    return next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))


# rows of the weight tables


def _kernel_rows(config: ModelConfig) -> list[Row]:
    """Return the rows of a block's kernels."""
    return [row for row in FAMILIES[config.family].body if is_block_kernel(row.paths[0])]


def _names(row: Row) -> list[str]:
    """Return our names of the linear maps in a row: q_proj, …"""
    return [path.split("/")[1] for path in row.paths]


def _modules(row: Row, config: ModelConfig) -> list[str]:
    """Return the module names of a row in transformers, by layer."""
    name = row.name.removesuffix(".weight")
    return [name.format(i=layer) for layer in range(config.layers)]


def _tail(row: Row) -> str:
    """Return a module's name within its layer."""
    return row.name.split("{i}.")[1].removesuffix(".weight")


def _stores_inputs_first(row: Row) -> bool:
    """Return True for kernels stored as [in, out], as in GPT-2; all others are [out, in]."""
    return row.layout in (AS_IS, CONCATENATED)


def _sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return path -> (inputs, outputs) of the kernels of a block."""
    shapes = param_shapes(config)
    return {path: leaf.shape[1:] for path, leaf in shapes.items() if is_block_kernel(path)}
