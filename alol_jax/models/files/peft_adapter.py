"""LoRA adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors.

PEFT keeps A as (r, in) and B as (out, r), and what it adds to a map is alpha/r · B A (alpha/√r with
``use_rslora``). A packed query-key-value map has one A and one B where there are three adapters
here. Reading copies A and cuts B as the kernel is cut. Writing n adapters of rank r stacks their A
to rank n · r and puts each B where its own columns and rows are, zeros elsewhere; with n · alpha
the scale stays alpha/r. Both are exact.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.blocks import LoRA
from alol_jax.models.config import ModelConfig
from alol_jax.models.files.hf_fields import Fields
from alol_jax.models.files.hf_reader import HUB_NAME, TensorFiles, download
from alol_jax.models.files.hf_writer import write_json, write_tensors
from alol_jax.models.files.peft_config import (
    CONFIG,
    PICKLE,
    WEIGHTS,
    config_json,
    is_target,
    one_scale,
    rank_and_scale,
    read_fields,
)
from alol_jax.models.files.weight_names import AS_IS, BODIES, SIDE_BY_SIDE, Row
from alol_jax.models.transformer import Transformer
from alol_jax.types import UserError, format_names

_PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter, read whole.

    Attributes:
        folder: where it lies.
        base: the model that it says it was made for.
        lora: what it is made of.
        leaves: ``layers/<module>/lora_a`` f32[L, in, r] and ``lora_b`` f32[L, r, out].
    """

    folder: Path
    base: str
    lora: LoRA
    leaves: dict[str, np.ndarray]

    def fingerprint(self) -> str:
        """blake2b over what it computes, wherever it lies: 32 hex digits."""
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


# ------------------------------------------------------------------ reading


def read_adapter(path: str | Path, config: ModelConfig) -> Adapter:
    """The adapter in a directory that PEFT wrote, or of a hub name, for a model of ``config``.

    All modules get the largest rank of any (``rank_pattern``): lower ones are filled up with zeros,
    which stay zeros in training. What `write_adapter` packed becomes separate adapters again.

    Raises:
        UserError: a file is missing, damaged or a pickle; a field asks for what is not implemented;
            the weights are not those of the model, or not those that the config speaks of.
    """
    folder = Path(path).expanduser()
    if not folder.exists() and HUB_NAME.fullmatch(str(path)):
        folder = download(str(path), (CONFIG, WEIGHTS, PICKLE))  # a pickle, to say how to convert
    fields = read_fields(folder)
    weights = TensorFiles([folder / WEIGHTS])
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
        parts |= _taken_apart(row, config, a, b, fields.size("r"))
    rank = max(a.shape[2] for a, _ in parts.values())
    leaves = {}
    for path, (a, b) in parts.items():
        leaves[f"{path}/lora_a"] = _widened(a, 2, rank)
        leaves[f"{path}/lora_b"] = _widened(b, 1, rank)
    dropout = fields.number("lora_dropout", 0.0)
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"{fields.where}: lora_dropout = {dropout} must be in [0, 1)")
    names = tuple(name for name in config.projections if f"layers/{name}" in parts)
    lora = LoRA(rank, float(one_scale(fields, scales) * rank), dropout, names)
    return Adapter(folder, str(fields.values.get("base_model_name_or_path") or ""), lora, leaves)


def _adapted_rows(folder: Path, weights: TensorFiles, config: ModelConfig) -> list[Row]:
    """The kernels of the model that the adapter has factors for."""
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
    left_over = sorted(set(weights.shapes) - set(expected))
    if missing or left_over or not found:
        raise UserError(
            f"{folder} is an adapter for another base than this {config.family} of {config.layers} "
            f"layers: missing {format_names(missing)}; left over {format_names(left_over)}"
        )
    return found


def _check_targets(fields: Fields, rows: Sequence[Row], config: ModelConfig) -> None:
    """PEFT leaves out the factors of a module that ``target_modules`` does not name, and makes some
    up for one that it names and that has none: neither is what was trained."""
    nameless, empty = [], []
    for row in _kernel_rows(config):
        for module in _modules(row, config):
            named = is_target(fields, module, row in rows)
            if named != (row in rows):
                (empty if named else nameless).append(module)
    if nameless or empty:
        raise UserError(
            f"{fields.where}: target_modules and the weights differ: it does not name "
            f"{format_names(nameless)}; it names without weights {format_names(empty)}"
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
                    wrong.append(f"{name} {weights.shapes[name]} for {shape}")
    if wrong:
        raise UserError(
            f"{folder} is an adapter for another base, or of another rank than {CONFIG} says: "
            f"{format_names(wrong)}"
        )


def _stacked(
    weights: TensorFiles, row: Row, config: ModelConfig, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """A and B of all layers: f32[L, in, rank] and f32[L, out, rank]."""
    a, b = [], []
    for module in _modules(row, config):
        for factor, stack, axis in (("A", a, 0), ("B", b, 1)):
            stored = weights.read(f"{_PREFIX}{module}.lora_{factor}.weight").astype(np.float32)
            stack.append(_widened(stored, axis, rank))
    return np.stack(a).swapaxes(1, 2), np.stack(b)


def _taken_apart(
    row: Row, config: ModelConfig, a: np.ndarray, b: np.ndarray, rank: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module path -> its A f32[L, in, r] and B f32[L, r, out].

    A run of ``rank`` columns of B in which only one part is not zero is that part's alone: that is
    how `write_adapter` packs parts. Where all runs are so, each part gets its own.
    """
    oriented = (layer.T if _stores_inputs_first(row) else layer for layer in b)
    layers = [row.layout.split(config, layer) for layer in oriented]
    each = [np.stack(part) for part in zip(*layers, strict=True)]
    paths = [path.removesuffix("/kernel") for path in row.paths]
    whole = {path: (a, part) for path, part in zip(paths, each, strict=True)}
    if len(paths) == 1 or a.shape[2] % rank:
        return whole
    runs = [slice(start, start + rank) for start in range(0, a.shape[2], rank)]
    readers = [[i for i, part in enumerate(each) if part[:, run].any()] for run in runs]
    owners = {found[0]: run for found, run in zip(readers, runs, strict=True) if len(found) == 1}
    if len(owners) < len(runs):
        return whole
    return {paths[i]: (a[:, :, run], each[i][:, run]) for i, run in owners.items()}


def _widened(x: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """``x`` with zeros at the end of ``axis``, ``rank`` long."""
    padding = [(0, rank - x.shape[axis]) if i == axis else (0, 0) for i in range(x.ndim)]
    return np.pad(x, padding)


# ------------------------------------------------------------------ writing


def write_adapter(
    folder: Path, config: ModelConfig, lora: LoRA, leaves: Mapping[str, Any], base: str
) -> None:
    """Writes what ``peft.PeftModel.from_pretrained`` reads, the weights in float32.

    Args:
        folder: must exist.
        leaves: as `Adapter.leaves`.
        base: where the base model lies, for those who load the adapter.
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
    """B as PEFT stores it, (out, n · r), from each adapted part's (A [in, r], B [r, out])."""
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
    """The shortest end of a module's name that is not the end of one of ``others``."""
    words = _tail(row).split(".")
    ends = [".".join(words[i:]) for i in reversed(range(len(words)))]
    return next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))


# ------------------------------------------------------------------ rows of the weight tables


def _kernel_rows(config: ModelConfig) -> list[Row]:
    """The maps of a block."""
    return [
        row for row in BODIES[config.family] if row.layered and row.paths[0].endswith("/kernel")
    ]


def _names(row: Row) -> list[str]:
    """Our names of the maps in a row: q_proj, …"""
    return [path.split("/")[1] for path in row.paths]


def _modules(row: Row, config: ModelConfig) -> list[str]:
    """The modules of a row, by layer, as transformers calls them."""
    name = row.name.removesuffix(".weight")
    return [name.format(i=layer) for layer in range(config.layers)]


def _tail(row: Row) -> str:
    """A module's name within its layer."""
    return row.name.split("{i}.")[1].removesuffix(".weight")


def _stores_inputs_first(row: Row) -> bool:
    """GPT-2's maps are stored as [in, out]; all others as [out, in]."""
    return row.layout in (AS_IS, SIDE_BY_SIDE)


def _sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Path of a kernel below ``layers/`` -> its inputs and outputs."""
    model = Transformer(config, None, jnp.dtype("float32"), False)
    leaves = jax.eval_shape(model.init, jax.random.key(0))
    return {path: leaf.shape[1:] for path, leaf in leaves.items() if path.endswith("/kernel")}
