"""Hugging Face directories whose kernels bitsandbytes has stored in 4 bits (NF4), read bit for bit.

Beside ``NAME.weight``, the packed codes u8[out · in / 2, 1], there are

* ``NAME.weight.absmax``: the scale of each block of 64 weights, f32, or its code, u8;
* ``NAME.weight.nested_absmax`` f32: with codes, the scale of each group of 256 of them;
* ``NAME.weight.quant_map`` and ``nested_quant_map``: the values of all codes;
* ``NAME.weight.quant_state.bitsandbytes__nf4``: the rest as JSON: ``shape`` [out, in],
  ``blocksize``, ``nested_blocksize`` and ``nested_offset``, the mean of all scales.

Blocks are of the flat tensor [out, in]; the first of two weights is in the high bits of a byte
(bitsandbytes/functional.py, `QuantState`).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alol_jax.errors import UserError, format_names, reason
from alol_jax.models.config import ModelConfig
from alol_jax.models.families.layouts import Row
from alol_jax.models.files.hf_reader import DTYPES, HFDirectory, json_object
from alol_jax.models.nf4 import BLOCK, LEVELS, NF4, SCALE_BLOCK, dynamic_map

_STATE = ".quant_state.bitsandbytes__nf4"
_PARTS = re.compile(
    r"(?P<kernel>.*\.weight)\.(absmax|quant_map|nested_absmax|nested_quant_map"
    r"|quant_state\.bitsandbytes__\w+)"
)
_FIELD = "quantization_config"


class Stored(NamedTuple):
    """A kernel as it is stored, in rows of inputs. ``double`` scales are codes of scales."""

    codes: np.ndarray  # u8[out, in], below 16
    scale: np.ndarray  # f32[out, in / 64], or u8
    group_scale: np.ndarray | None = None  # f32[⌈out · in / 64 / 256⌉]
    mean: np.float32 = np.float32(0.0)

    def scales(self) -> np.ndarray:
        """f32[out, in / 64]."""
        if self.group_scale is None:
            return self.scale
        sizes = np.repeat(self.group_scale, SCALE_BLOCK)[: self.scale.size]
        return dynamic_map()[self.scale] * sizes.reshape(self.scale.shape) + self.mean


def open_weights(path: Path) -> HFDirectory:
    """Open a directory, whose kernels may be stored in NF4.

    Raises:
      UserError: they are stored in another low precision; or see `HFDirectory`.
    """
    file = path / "config.json"
    stored = json_object(file).get(_FIELD)
    if stored is None:
        return HFDirectory(path)
    scheme = _scheme(stored) if isinstance(stored, dict) else repr(stored)
    if scheme:
        raise UserError(
            f"{file}: the weights are stored as {scheme}, which is not read (only bitsandbytes' "
            "NF4 is): choose the repository in full precision; config.model.quantisation=nf4 "
            "quantises it while it is loaded"
        )
    return NF4Directory(path)


def _scheme(stored: dict[str, Any]) -> str:
    """Return the name of the scheme that ``quantization_config`` describes; "" for NF4."""
    method = stored.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        return {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}.get(method, repr(method))
    if not stored.get("load_in_4bit"):
        return "int8 (bitsandbytes)"
    kind = stored.get("bnb_4bit_quant_type", "fp4")
    if kind != "nf4":
        return f"{kind} (bitsandbytes)"
    storage = stored.get("bnb_4bit_quant_storage") or "uint8"
    return "" if storage == "uint8" else f"NF4 packed into {storage}"


class NF4Directory(HFDirectory):
    """A directory with kernels in NF4.

    ``shapes`` has every tensor once, kernels as [out, in]; `read` dequantises, `read_stored` does
    not. ``config_json`` lacks the description of the quantisation.

    Raises:
      UserError: a kernel's parts are missing or of another form; or see `HFDirectory`.
    """

    dtypes = DTYPES | {"U8"}

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.config_json = {k: v for k, v in self.config_json.items() if k != _FIELD}
        parts = [found for name in self.shapes if (found := _PARTS.fullmatch(name))]
        self._states = {name: self._state(name) for name in {one["kernel"] for one in parts}}
        for found in parts:
            del self.shapes[found[0]]
        for name, state in self._states.items():
            self.shapes[name] = tuple(state["shape"])
        doubles = {"nested_blocksize" in state for state in self._states.values()}
        if len(doubles) != 1:
            raise UserError(
                f"{path}: {'some' if doubles else 'no'} kernels have quantised scales, not all "
                "alike: choose another checkpoint"
            )
        self.nf4 = NF4(double=doubles.pop())

    @property
    def quantised(self) -> frozenset[str]:
        """The names of the kernels in NF4."""
        return frozenset(self._states)

    def read(self, name: str) -> np.ndarray:
        """Read a tensor: as stored, or f32[out, in] if it is in NF4."""
        if name not in self._states:
            return self._as_stored(name)
        stored = self.read_stored(name)
        levels = np.array(LEVELS, np.float32)[stored.codes]
        return levels * np.repeat(stored.scales(), BLOCK, axis=1)

    def read_stored(self, name: str) -> Stored:
        """Read a kernel in NF4."""
        state = self._states[name]
        out, width = state["shape"]
        packed = self._as_stored(name).reshape(-1)
        codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(out, width)
        scale = self._as_stored(f"{name}.absmax").reshape(out, width // BLOCK)
        if not self.nf4.double:
            return Stored(codes, scale.astype(np.float32))
        group = self._as_stored(f"{name}.nested_absmax").astype(np.float32)
        return Stored(codes, scale, group, np.float32(state["nested_offset"]))

    def _as_stored(self, name: str) -> np.ndarray:
        return super().read(name)

    def _state(self, name: str) -> dict[str, Any]:
        """Return the JSON of a kernel after checking that its parts have the expected form."""
        if name + _STATE not in self.shapes or name not in self.shapes:
            raise UserError(f"{self.path}: {name} lacks its state or its codes: download it again")
        try:
            state = json.loads(self._as_stored(name + _STATE).tobytes())
            out, width = map(int, state["shape"])
            nested = state.get("nested_blocksize")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path}: the state of {name} is damaged ({reason(error)}): download it again"
            ) from error
        tables = {".quant_map": np.array(LEVELS, np.float32)}
        sizes = {"": out * width // 2, ".absmax": out * width // BLOCK}
        if nested is not None:
            tables[".nested_quant_map"] = dynamic_map()
            sizes[".nested_absmax"] = -(-out * width // BLOCK // SCALE_BLOCK)
        usual = state.get("blocksize") == BLOCK and nested in (None, SCALE_BLOCK)
        if not (usual and width % BLOCK == 0 and self._has_parts(name, tables, sizes)):
            raise UserError(
                f"{self.path}: {name} is in a form of NF4 that is not read (blocks of {BLOCK} "
                f"inputs, scales in groups of {SCALE_BLOCK}, bitsandbytes' tables): choose another "
                "checkpoint"
            )
        return state

    def _has_parts(self, name: str, tables: dict[str, np.ndarray], sizes: dict[str, int]) -> bool:
        """Whether the tables of a kernel are these, and its other parts as large as that."""
        if any(name + part not in self.shapes for part in (*tables, *sizes)):
            return False
        found = (self._as_stored(name + part) for part in tables)
        same = all(map(np.array_equal, found, tables.values()))
        return same and all(
            math.prod(self.shapes[name + part]) == size for part, size in sizes.items()
        )


def leaves_of(row: Row, config: ModelConfig, stored: Stored, where: str) -> list[dict[str, Any]]:
    """Return what `nf4.quantise` would return for each kernel of a row, from what is stored.

    Raises:
      UserError: the kernels of the row cannot be told apart without quantising again.
    """
    if row.inputs_first:
        raise UserError(f"{where}: {row.name} has its inputs first, which is not read in 4 bits")
    split = row.layout.split
    groups = np.arange(stored.scale.size).reshape(stored.scale.shape) // SCALE_BLOCK
    every = zip(*(split(config, x) for x in (stored.codes, stored.scale, groups)), strict=True)
    found = []
    for codes, scale, group in every:
        leaves = {"nf4_codes": _packed(codes)}
        if stored.group_scale is None:
            found.append(leaves | {"nf4_scale": np.ascontiguousarray(scale)})
            continue
        order = group.T.reshape(-1)
        first, last = int(order[0]), int(order[-1])
        if not np.array_equal(order - first, np.arange(order.size) // SCALE_BLOCK):
            raise UserError(
                f"{where}: {row.name} holds {len(row.paths)} kernels whose scales are quantised "
                "together: choose a checkpoint without double quantisation, or in full precision"
            )
        found.append(
            leaves
            | {
                "nf4_scale_codes": np.ascontiguousarray(scale),
                "nf4_scale_scale": stored.group_scale[first : last + 1],
                "nf4_scale_mean": stored.mean,
            }
        )
    return found


def _packed(codes: np.ndarray) -> np.ndarray:
    """Pack codes u8[in, out] as `nf4` does: u8[in / 2, out]."""
    halves = codes.reshape(-1, 2, BLOCK // 2, codes.shape[1])
    return (halves[:, 0] | halves[:, 1] << 4).reshape(-1, codes.shape[1])


def check_all_quantised(weights: NF4Directory, kernels: frozenset[str]) -> None:
    """Raise UserError unless exactly the kernels of the blocks are in NF4."""
    missing, others = kernels - weights.quantised, weights.quantised - kernels
    if missing or others:
        raise UserError(
            f"{weights.path}: only the kernels of all layers are read in 4 bits: not in 4 bits "
            f"{format_names(sorted(missing))}; in 4 bits {format_names(sorted(others))}: choose "
            "the repository in full precision; config.model.quantisation=nf4 quantises it"
        )
