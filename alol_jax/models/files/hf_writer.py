"""Writing what Hugging Face libraries read: safetensors files, shards with their index, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORED_AS = {"float32": "F32", "bfloat16": "BF16"}
"""The dtypes that are written, and what safetensors calls them."""

SHARD_BYTES = 5 * 10**9

Read = Callable[[str], np.ndarray]
"""The name of a tensor -> the tensor."""


def write_tensors(
    file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, read: Read
) -> None:
    """A safetensors file, written tensor by tensor: one of them is in memory at a time.

    The format: 8 bytes that hold the length of a JSON header, the header (name -> dtype, shape and
    place), then the tensors' bytes; https://github.com/huggingface/safetensors.

    Args:
      shapes: name -> shape, in the order of the file.
      dtype: a key of `STORED_AS`; what ``read`` gives is rounded to it.
      read: asked once for each name, in order.

    Raises:
      ValueError: a tensor has another shape than was said.
    """
    width, place = np.dtype(dtype).itemsize, 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    for name, shape in shapes.items():
        end = place + width * math.prod(shape)
        entry = {"dtype": STORED_AS[dtype], "shape": list(shape), "data_offsets": [place, end]}
        header[name], place = entry, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name, shape in shapes.items():
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
    """model.safetensors, or shards of at most ``shard_bytes`` with their index; a tensor that is
    larger has a shard of its own. The rest is as in `write_tensors`."""
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
    """A JSON file as people read it."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shards(
    shapes: Mapping[str, tuple[int, ...]], width: int, most: int
) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in order, in parts of at most ``most`` bytes."""
    shards: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for name, shape in shapes.items():
        size = width * math.prod(shape)
        if size > room or not shards:
            shards.append({})
            room = most
        shards[-1][name] = shape
        room -= size
    return shards
