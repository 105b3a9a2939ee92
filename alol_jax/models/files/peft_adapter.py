"""LoRA adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors.

adapter_model.bin, which older versions of PEFT wrote, is read where there is no safetensors file.

PEFT stores A as (r, in) and B as (out, r) and adds alpha/r · B A to a linear map (alpha/√r with
``use_rslora``). A packed query-key-value map has one A and one B in PEFT but three adapters here.
Reading copies A and splits B like the kernel. Writing n adapters of rank r concatenates their A to
rank n · r and makes B block-wise, with zeros outside each adapter's own rows and columns; with
n · alpha the scale stays alpha/r. Both are exact. What else an adapter may change is in
`peft_changes`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.errors import UserError, format_names
from alol_jax.models.blocks import LoRA
from alol_jax.models.config import ModelConfig
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.layouts import Row
from alol_jax.models.files.convert import Checkpoint
from alol_jax.models.files.hf_reader import HubFiles, TensorFiles, copied, download, on_hub
from alol_jax.models.files.hf_writer import write_json, write_tensors
from alol_jax.models.files.peft_changes import (
    BaseChanges,
    StoredChanges,
    read_changes,
    stored_changes,
)
from alol_jax.models.files.peft_config import (
    CONFIG,
    TORCH_WEIGHTS,
    WEIGHTS,
    adapted_layers,
    common_scale,
    config_json,
    is_target,
    rank_and_scale,
    read_fields,
    weights_file,
)
from alol_jax.models.files.peft_rows import (
    PREFIX,
    kernel_rows,
    kernel_sizes,
    module_of,
    modules_of,
    names_of,
    tail_of,
)
from alol_jax.paths import is_bucket

ADAPTER_FILES = HubFiles((CONFIG,), (WEIGHTS,), (TORCH_WEIGHTS,))


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter in memory.

    Attributes:
        folder: the directory it was read from.
        base: the base model that its config names; "" if none.
        lora: rank, alpha, dropout and modules; None if it is merged into the base while that is
            loaded (DoRA).
        leaves: ``layers/<module>/lora_a`` f32[L, in, r] and ``lora_b`` f32[L, r, out]; zeros in
            layers without an adapter, which stay zeros in training.
        changes: what becomes of the base's own weights.
        commit: that was read of a repository on the hub; "" elsewhere.
    """

    folder: Path
    base: str
    lora: LoRA | None
    leaves: dict[str, np.ndarray]
    changes: BaseChanges = BaseChanges()
    commit: str = ""

    def fingerprint(self) -> str:
        """Return the blake2b hash of its settings and weights, as 32 hex digits."""
        digest = hashlib.blake2b(repr(self.lora).encode(), digest_size=16)
        for path, leaf in sorted(self.leaves.items()):
            digest.update(path.encode())
            digest.update(np.ascontiguousarray(leaf).data)
        self.changes.hash_into(digest)
        return digest.hexdigest()

    def __str__(self) -> str:
        told = f"{self.folder}, made for {self.base or 'a base without a name'}: "
        if self.lora is None:
            return (
                f"{told}merged into the base while that is loaded ({self.changes}); new adapters "
                "of config.model.lora train"
            )
        lora = self.lora
        told += (
            f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on "
            f"{', '.join(lora.modules)}; config.model.lora is not read"
        )
        return f"{told}; its own {self.changes} stay as they are" if self.changes else told


# reading


def read_adapter(path: str | Path, config: ModelConfig) -> Adapter:
    """Read the adapter in a PEFT directory or of a hub name, for a model of ``config``.

    All modules get the largest rank of any (``rank_pattern``). Lower ranks are padded with zeros,
    which stay zero in training. Adapters packed by `write_adapter` are separated again.

    Raises:
        UserError: a file is missing or damaged, or holds more than tensors; a field needs something
            that is not implemented; or the weights do not match the model or adapter_config.json.
    """
    folder, commit = _folder(str(path))
    fields = read_fields(folder)
    weights = TensorFiles([weights_file(folder)])
    layers = adapted_layers(fields, modules_of(kernel_rows(config)[0], config))
    rows, stored = _adapted_rows(fields, weights, layers, config)
    _check_targets(fields, rows, layers, config)
    modules = [module_of(row, layer) for row in rows for layer in layers]
    scales = {module: rank_and_scale(fields, module) for module in modules}
    _check_shapes(folder, weights, rows, layers, config, scales)
    _check_changes(folder, weights, stored)
    factors = {module: float(scale) for module, (_, scale) in scales.items()}
    changes = read_changes(fields, weights, stored, factors, config)
    base = str(fields.values.get("base_model_name_or_path") or "")
    if changes.dora:
        return Adapter(folder, base, None, {}, changes, commit)
    leaves, rank = _leaves(fields, weights, rows, layers, config, scales)
    dropout = fields.number("lora_dropout", 0.0)
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"{fields.where}: lora_dropout = {dropout} must be in [0, 1)")
    names = tuple(name for name in config.projections if f"layers/{name}/lora_a" in leaves)
    lora = LoRA(rank, float(common_scale(fields, scales) * rank), dropout, names)
    return Adapter(folder, base, lora, leaves, changes, commit)


def _folder(path: str) -> tuple[Path, str]:
    """Return the directory of an adapter, and the commit if it is one of the hub."""
    folder = copied(path, ADAPTER_FILES) if is_bucket(path) else Path(path).expanduser()
    model = None if folder.exists() else on_hub(path)
    if model is None:
        return folder, ""
    folder = download(model, ADAPTER_FILES)
    return folder, folder.name


def _adapted_rows(
    fields: Fields, weights: TensorFiles, layers: Collection[int], config: ModelConfig
) -> tuple[list[Row], StoredChanges]:
    """Return the rows of the kernels that have adapters, and what else is stored."""
    tensors = {
        row: [
            f"{PREFIX}{module_of(row, layer)}.lora_{factor}.weight"
            for layer in layers
            for factor in "AB"
        ]
        for row in kernel_rows(config)
    }
    found = [row for row, names in tensors.items() if any(n in weights.shapes for n in names)]
    stored = stored_changes(fields, weights, found, layers, config)
    expected = [name for row in found for name in tensors[row]] + [s.name for s in stored.all]
    missing = [name for name in expected if name not in weights.shapes]
    unexpected = sorted(set(weights.shapes) - set(expected))
    if missing or unexpected or not found:
        raise UserError(
            f"{Path(fields.where).parent} is an adapter for another base than this "
            f"{config.family} of {config.layers} layers: missing {format_names(missing)}; "
            f"unexpected {format_names(unexpected)}"
        )
    return found, stored


def _check_targets(
    fields: Fields, rows: Sequence[Row], layers: Collection[int], config: ModelConfig
) -> None:
    """Raise UserError unless ``target_modules`` names exactly the modules with weights.

    PEFT drops the weights of modules that are not named and creates new ones for named modules
    without weights. Neither is the trained adapter.
    """
    unnamed, empty = [], []
    for row in kernel_rows(config):
        for layer in layers:
            module = module_of(row, layer)
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
    layers: Collection[int],
    config: ModelConfig,
    scales: Mapping[str, tuple[int, Fraction]],
) -> None:
    sizes = kernel_sizes(config)
    wrong = []
    for row in rows:
        inputs = sizes[row.paths[0]][0]
        outputs = sum(sizes[path][1] for path in row.paths)
        for module in (module_of(row, layer) for layer in layers):
            rank = scales[module][0]
            for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                name = f"{PREFIX}{module}.lora_{factor}.weight"
                if weights.shapes[name] != shape:
                    wrong.append(f"{name} {weights.shapes[name]}, expected {shape}")
    if wrong:
        raise UserError(
            f"{folder} is an adapter for another base, or of another rank than {CONFIG} says: "
            f"{format_names(wrong)}"
        )


def _check_changes(folder: Path, weights: TensorFiles, stored: StoredChanges) -> None:
    wrong = [
        f"{one.name} {weights.shapes[one.name]}, expected {one.shape}"
        for one in stored.all
        if weights.shapes[one.name] != one.shape
    ]
    if wrong:
        raise UserError(
            f"{folder} changes weights of the base to others of another shape, which is not "
            f"implemented: {format_names(wrong)}: merge it with peft's merge_and_unload"
        )


def _leaves(
    fields: Fields,
    weights: TensorFiles,
    rows: Sequence[Row],
    layers: Collection[int],
    config: ModelConfig,
    scales: Mapping[str, tuple[int, Fraction]],
) -> tuple[dict[str, np.ndarray], int]:
    """Return A and B by path, all of one rank, and that rank."""
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for row in rows:
        rank = max(scales[module_of(row, layer)][0] for layer in layers)
        a, b = _stacked(weights, row, layers, config, rank)
        parts |= _unpacked(row, config, a, b, fields.size("r"))
    rank = max(a.shape[2] for a, _ in parts.values())
    leaves = {}
    for path, (a, b) in parts.items():
        leaves[f"{path}/lora_a"] = _padded(a, 2, rank)
        leaves[f"{path}/lora_b"] = _padded(b, 1, rank)
    return leaves, rank


def _stacked(
    weights: TensorFiles, row: Row, layers: Collection[int], config: ModelConfig, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B of all layers: f32[L, in, rank] and f32[L, out, rank]."""
    a, b = [], []
    for layer in range(config.layers):
        # A layer without an adapter has one of rank 0, which is padded.
        read, module = layer in layers, module_of(row, layer if layer in layers else min(layers))
        for factor, stack, axis in (("A", a, 0), ("B", b, 1)):
            stored = weights.read(f"{PREFIX}{module}.lora_{factor}.weight").astype(np.float32)
            stored = stored if read else np.delete(stored, np.s_[:], axis)
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
    oriented = (layer.T if row.inputs_first else layer for layer in b)
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


def with_changes(checkpoint: Checkpoint | None, adapter: Adapter) -> Checkpoint:
    """Return the checkpoint of the base with what the adapter changes in it.

    Raises:
        UserError: the base has none, but random weights; or its kernels are stored in 4 bits, and
            the adapter changes them.
    """
    if checkpoint is None:
        raise UserError(
            f"config.model.adapter: {adapter.folder} changes weights of its base "
            f"({adapter.changes}): config.model.path must be that base, not a random model"
        )
    if checkpoint.stored_nf4 is not None and adapter.changes.dora:
        raise UserError(
            f"config.model.adapter: {adapter.folder} changes kernels of its base (DoRA), which is "
            "stored in 4 bits: give the base in full precision"
        )
    return dataclasses.replace(checkpoint, changes=adapter.changes)


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
    for row in kernel_rows(config):
        names = [name for name in names_of(row) if name in lora.modules]
        for layer, module in enumerate(modules_of(row, config) if names else ()):
            of = {
                name: [np.asarray(leaves[f"layers/{name}/lora_{x}"][layer]) for x in "ab"]
                for name in names
            }
            tensors[f"{PREFIX}{module}.lora_A.weight"] = np.concatenate(
                [a for a, _ in of.values()], axis=1
            ).T
            tensors[f"{PREFIX}{module}.lora_B.weight"] = _packed(row, config, of)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, shapes, "float32", tensors.__getitem__)
    write_json(folder / CONFIG, _config_json(config, lora, base))


def _packed(row: Row, config: ModelConfig, of: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Return B as PEFT stores it, (out, n · r), from the (A [in, r], B [r, out]) of each part."""
    rank, sizes = next(iter(of.values()))[1].shape[0], kernel_sizes(config)
    parts, start = [], 0
    for name, path in zip(names_of(row), row.paths, strict=True):
        part = np.zeros((rank * len(of), sizes[path][1]), np.float32)
        if name in of:
            part[start : start + rank] = of[name][1]
            start += rank
        parts.append(part)
    stored = np.asarray(row.layout.join(config, parts))
    return stored.T if row.inputs_first else stored


def _config_json(config: ModelConfig, lora: LoRA, base: str) -> dict[str, Any]:
    rows = {row: [n for n in names_of(row) if n in lora.modules] for row in kernel_rows(config)}
    others = [tail_of(row) for row, names in rows.items() if not names]
    adapted = {row: names for row, names in rows.items() if names}
    counts = {_target(row, others): len(names) for row, names in adapted.items()}
    return config_json(lora, base, counts, any(row.inputs_first for row in adapted))


def _target(row: Row, others: Sequence[str]) -> str:
    """Return the shortest suffix of the module name that is not a suffix of one of ``others``."""
    words = tail_of(row).split(".")
    ends = [".".join(words[i:]) for i in reversed(range(len(words)))]
    return next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))
