"""What an adapter of PEFT changes in its base, besides adding A B; done while the base is loaded.

* DoRA (Liu et al. 2024, arXiv 2402.09353, section 4): a kernel W becomes
  m · (W + scale · A B) / ‖W + scale · A B‖, with a magnitude m, and a norm over the inputs, for
  each output.
* ``bias="lora_only"``: the biases of the adapted linear maps are others.
* ``modules_to_save``, or an embedding that PEFT saved unasked: embedding or head are others.

What is changed so does not train.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.models.config import ModelConfig
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.layouts import Row
from alol_jax.models.files.hf_reader import TensorFiles
from alol_jax.models.files.peft_rows import (
    EMBEDDING,
    HEAD,
    PREFIX,
    bias_row,
    end_rows,
    kernel_sizes,
    module_of,
)
from alol_jax.models.transformer import param_shapes

HEAD_OF_ALL = "lm_head"  # transformers 5 calls the head of every family so, but not in its files


class Dora(NamedTuple):
    """An adapter that changes the directions of a kernel's outputs, and sets their lengths."""

    a: np.ndarray  # f32[in, r]
    b: np.ndarray  # f32[r, out]
    magnitude: np.ndarray  # f32[out]
    scale: float

    def merged(self, kernel: np.ndarray) -> np.ndarray:
        """Return m · (W + scale · A B) / ‖W + scale · A B‖, f32[in, out]."""
        turned = kernel.astype(np.float32) + np.float32(self.scale) * (self.a @ self.b)
        return turned * (self.magnitude / np.linalg.norm(turned, axis=0))


@dataclasses.dataclass(frozen=True, eq=False)
class BaseChanges:
    """The changes, by the path and the layer of the parameter.

    Attributes:
        replaced: what is there instead.
        dora: what is merged into a kernel.
    """

    replaced: Mapping[tuple[str, int], np.ndarray] = dataclasses.field(default_factory=dict)
    dora: Mapping[tuple[str, int], Dora] = dataclasses.field(default_factory=dict)

    def __call__(self, path: str, layer: int, value: np.ndarray) -> np.ndarray:
        """Return what becomes of the base's ``value``."""
        if (path, layer) in self.dora:
            return self.dora[path, layer].merged(value)
        return self.replaced.get((path, layer), value)

    def __bool__(self) -> bool:
        return bool(self.replaced or self.dora)

    def __str__(self) -> str:
        changed = {path.removeprefix("layers/") for path, _ in (*self.replaced, *self.dora)}
        return ", ".join(sorted(changed))

    def hash_into(self, digest: Any) -> None:
        """Add all numbers and their names to a hash of `hashlib`."""
        for name, array in self._arrays():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield all numbers with a name, in the same order every time."""
        for (path, layer), array in sorted(self.replaced.items(), key=lambda item: item[0]):
            yield f"{path} {layer}", array
        for (path, layer), dora in sorted(self.dora.items(), key=lambda item: item[0]):
            for name, array in dora._asdict().items():
                yield f"{path} {layer} {name}", np.asarray(array)


class Stored(NamedTuple):
    """A tensor in an adapter's file: its name, the expected shape, and whose it is."""

    name: str
    shape: tuple[int, ...]
    row: Row
    layer: int


class StoredChanges(NamedTuple):
    """The tensors of all changes."""

    magnitudes: list[Stored]
    biases: list[Stored]
    ends: list[Stored]

    @property
    def all(self) -> list[Stored]:
        return [*self.magnitudes, *self.biases, *self.ends]


def stored_changes(
    fields: Fields,
    weights: TensorFiles,
    rows: Sequence[Row],
    layers: Collection[int],
    config: ModelConfig,
) -> StoredChanges:
    """Return the tensors that adapter_config.json promises besides A and B.

    Args:
        rows: the rows of the kernels that have adapters.
        layers: those that have adapters.

    Raises:
        UserError: ``modules_to_save`` names something else than the embedding and the head.
    """
    adapted = [(row, layer) for row in rows for layer in layers]
    magnitudes = _magnitudes(weights, adapted, config) if fields.flag("use_dora", False) else []
    biased = fields.values.get("bias") == "lora_only"
    return StoredChanges(
        magnitudes,
        _biases(weights, adapted, config) if biased else [],
        _ends(fields, weights, config),
    )


def read_changes(
    fields: Fields,
    weights: TensorFiles,
    stored: StoredChanges,
    scales: Mapping[str, float],
    config: ModelConfig,
) -> BaseChanges:
    """Read the changes.

    Args:
        stored: all there, of the expected shapes.
        scales: module -> the factor of its A B.

    Raises:
        UserError: a model with one matrix for both ends would have two; a number is not finite.
    """
    ends = _read_ends(fields, weights, stored.ends, config)
    replaced = {(path, 0): value for path, value in ends.items()}
    for _, _, row, layer, value in _read(weights, stored.biases):
        parts = row.layout.split(config, value)
        replaced |= {(path, layer): part for path, part in zip(row.paths, parts, strict=True)}
    dora: dict[tuple[str, int], Dora] = {}
    for _, _, row, layer, value in _read(weights, stored.magnitudes):
        dora |= _dora(weights, row, layer, value, scales[module_of(row, layer)], config)
    return BaseChanges(replaced, dora)


def _read(weights: TensorFiles, stored: Sequence[Stored]) -> Iterator[tuple]:
    for one in stored:
        yield *one, weights.read(one.name).astype(np.float32)


def _first_stored(weights: TensorFiles, *names: str) -> str:
    """Return the first of the names that is in the file; the first of all if none is."""
    return next((name for name in names if name in weights.shapes), names[0])


def _magnitudes(
    weights: TensorFiles, adapted: Sequence[tuple[Row, int]], config: ModelConfig
) -> list[Stored]:
    sizes, found = kernel_sizes(config), []
    for row, layer in adapted:
        name = f"{PREFIX}{module_of(row, layer)}.lora_magnitude_vector"
        outputs = sum(sizes[path][1] for path in row.paths)
        name = _first_stored(weights, name, f"{name}.weight")
        found.append(Stored(name, (outputs,), row, layer))
    return found


def _biases(
    weights: TensorFiles, adapted: Sequence[tuple[Row, int]], config: ModelConfig
) -> list[Stored]:
    """Return the biases of the adapted maps; PEFT's name of the map has changed."""
    ours, found = param_shapes(config), []
    for row, layer in adapted:
        biases = bias_row(row, config)
        if biases is not None:
            module = f"{PREFIX}{module_of(row, layer)}"
            name = _first_stored(weights, f"{module}.base_layer.bias", f"{module}.bias")
            found.append(Stored(name, biases.stored_shape(config, ours), biases, layer))
    return found


def _ends(fields: Fields, weights: TensorFiles, config: ModelConfig) -> list[Stored]:
    """Return the embedding and the head, as far as they are named or stored."""
    rows = end_rows(config)
    modules = {path: [row.name.removesuffix(".weight")] for path, row in rows.items()}
    if HEAD in modules:
        modules[HEAD].append(HEAD_OF_ALL)
    named = fields.values.get("modules_to_save") or []
    every = list(dict.fromkeys(name for names in modules.values() for name in names))
    if not all(any(_is_end(module, name) for module in every) for name in named):
        raise fields.unimplemented("modules_to_save", named, ", ".join(every))
    shape, found = param_shapes(config)[EMBEDDING].shape, []  # in both, tokens come first
    for path, row in rows.items():
        stored = _first_stored(weights, *(f"{PREFIX}{name}.weight" for name in modules[path]))
        wanted = any(_is_end(module, name) for module in modules[path] for name in named)
        if wanted or stored in weights.shapes:
            found.append(Stored(stored, shape, row, 0))
    return found


def _is_end(module: str, name: str) -> bool:
    return f".{module}".endswith(f".{name}")


def _read_ends(
    fields: Fields, weights: TensorFiles, stored: Sequence[Stored], config: ModelConfig
) -> dict[str, np.ndarray]:
    found = {one.row.paths[0]: weights.read(one.name) for one in stored}
    if found and config.tied_embeddings:
        tied = fields.flag("ensure_weight_tying", False) or len(found) == 2
        values = list(found.values())
        if not tied or not np.array_equal(values[0], values[-1]):
            raise UserError(
                f"{fields.where}: the base has one matrix as embedding and head, and the adapter "
                f"would give it two ({', '.join(one.name for one in stored)} is another): merge it "
                "into its base with peft's merge_and_unload"
            )
        return {EMBEDDING: values[0]}
    return {path: value.T if path == HEAD else value for path, value in found.items()}


def _dora(
    weights: TensorFiles,
    row: Row,
    layer: int,
    magnitude: np.ndarray,
    scale: float,
    config: ModelConfig,
) -> dict[tuple[str, int], Dora]:
    """Split A, B and the magnitudes of a stored map into those of its parts."""
    module = f"{PREFIX}{module_of(row, layer)}"
    a, b = (weights.read(f"{module}.lora_{x}.weight").astype(np.float32) for x in "AB")
    columns = np.concatenate([b, magnitude[:, None]], axis=1)  # [out, r + 1], like a kernel
    parts = row.layout.split(config, columns.T if row.inputs_first else columns)
    return {
        (path, layer): Dora(a.T, part[:-1], part[-1], scale)
        for path, part in zip(row.paths, parts, strict=True)
    }
