"""Writing files for Hugging Face libraries: safetensors, sharded with an index, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.runs.progress import progress
from alol_jax.types import Watch

SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16"}
"""The supported dtypes -> their names in safetensors."""

SHARD_BYTES = 5 * 10**9

Read = Callable[[str], np.ndarray]
"""Tensor name -> tensor."""


def write_tensors(
    file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, read: Read
) -> None:
    """Write a safetensors file, with one tensor in memory at a time.

    The format: the length of a JSON header in 8 bytes, the header (name -> dtype, shape and
    offsets), then the bytes of the tensors; https://github.com/huggingface/safetensors.

    Args:
      file: the file to write.
      shapes: name -> shape, in the order of the file.
      dtype: a key of `SAFETENSORS_DTYPES`; tensors are rounded to it.
      read: called once for each name, in order.

    Raises:
      ValueError: a tensor does not have the shape in ``shapes``.
    """
    width, start = np.dtype(dtype).itemsize, 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # required by transformers
    for name, shape in shapes.items():
        end = start + width * math.prod(shape)
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        written = progress(shapes.items(), Watch(file.name), total=len(shapes))
        for name, shape in written:
            tensor = np.asarray(read(name), np.dtype(dtype), order="C")
            if tensor.shape != tuple(shape):
                raise ValueError(f"{name} is {tensor.shape}, not {shape}")
            stream.write(tensor.reshape(-1).view(np.uint8).data)


def write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    read: Read,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write model.safetensors, or shards of at most ``shard_bytes`` with their index.

    A larger tensor gets a shard of its own. The other arguments are those of `write_tensors`.
    """
    shards = _shards(shapes, np.dtype(dtype).itemsize, shard_bytes)
    if len(shards) == 1:
        write_tensors(folder / "model.safetensors", shapes, dtype, read)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard, dtype, read)
        weight_map |= dict.fromkeys(shard, file)
    total = np.dtype(dtype).itemsize * sum(map(math.prod, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(file: Path, value: Any) -> None:
    """Write an indented JSON file."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shards(
    shapes: Mapping[str, tuple[int, ...]], width: int, limit: int
) -> list[dict[str, tuple[int, ...]]]:
    """Split the tensors, in order, into shards of at most ``limit`` bytes."""
    shards: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for name, shape in shapes.items():
        size = width * math.prod(shape)
        if size > room or not shards:
            shards.append({})
            room = limit
        shards[-1][name] = shape
        room -= size
    return shards
