"""Reading files of torch.save: pytorch_model.bin, adapter_model.bin and state dicts in .pt.

Two forms. Since torch 1.6, a zip archive of uncompressed records: ``NAME/data.pkl`` is the pickle,
``NAME/data/KEY`` the bytes of a storage, ``NAME/byteorder`` their order. Before, five pickles (a
magic number, a version, facts about the machine, the object, the keys of the storages) and then, in
the order of the keys, the storages: the number of elements (int64) and the bytes.
torch/serialization.py. No pickle is run, see `torch_pickle`.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from alol_jax.errors import UserError, reason
from alol_jax.models.files.torch_pickle import NotTensors, Storage, Tensor, read_pickle

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_LONGEST = 2**23  # bytes of pickle; a tensor needs about 200
_ZIP, _TAR = b"PK\3\4", b"ustar"
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, lengths of the name and of extra fields


class TorchFile:
    """The named tensors of one file of torch.save.

    ``entries`` is name -> (dtype as safetensors names it, shape). Tensors are read one at a time,
    no larger than the file, and the file is closed in between.

    Raises:
      UserError: the file is damaged or holds anything but a dict of tensors.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with file.open("rb") as stream:
                head = stream.read(512)
                value, self._starts = (_read_zip if head[:4] == _ZIP else _read_old)(stream, head)
            self._tensors = _state_dict(value)
        except NotTensors as error:
            raise UserError(
                f"{file} holds more than tensors: {error}, which is not read and was not run: save "
                "the tensors alone, as safetensors or by torch.save(model.state_dict(), …)"
            ) from error
        except (
            *(ValueError, OSError, EOFError, OverflowError, NotImplementedError),
            *(struct.error, zipfile.BadZipFile),
        ) as error:
            raise _damaged(file, error) from error
        self.entries = {
            name: (tensor.storage.dtype, tensor.shape) for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read the tensor ``name`` as stored."""
        tensor = self._tensors[name]
        dtype, storage = _DTYPES[tensor.storage.dtype], tensor.storage
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        steps = [s if n > 1 else 0 for n, s in zip(tensor.shape, tensor.strides, strict=True)]
        strides = [step * dtype.itemsize for step in steps]
        last = sum((n - 1) * step for n, step in zip(tensor.shape, strides, strict=True))
        start = self._starts[storage.key] + (storage.start + tensor.offset) * dtype.itemsize
        try:
            with self.file.open("rb") as stream:
                stream.seek(start)
                stored = np.fromfile(stream, np.uint8, last + dtype.itemsize)
        except OSError as error:
            raise _damaged(self.file, error) from error
        if stored.size != last + dtype.itemsize:
            raise _damaged(self.file, ValueError(f"it ends within {name}"))
        seen = np.lib.stride_tricks.as_strided(stored.view(dtype), tensor.shape, strides)
        return seen if seen.flags.c_contiguous else seen.copy()


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} is damaged or not a file of torch.save ({reason(error)[:200]}): download it again"
    )


def _state_dict(value: Any) -> dict[str, Tensor]:
    """Check that a value is a dict of tensors."""
    if type(value) is not dict:
        raise NotTensors(f"a {type(value).__name__} instead of a dict of tensors")
    for name, tensor in value.items():
        if not name.isprintable():
            raise NotTensors(f"the name {ascii(name)[:100]}")
        if type(tensor) is not Tensor:
            raise NotTensors(f"{name[:100]}, a {type(tensor).__name__}")
    return value


# the zip form


def _read_zip(stream: BinaryIO, head: bytes) -> tuple[Any, dict[str, int]]:
    """Return the object, and key -> position of the storage's bytes in the file."""
    with zipfile.ZipFile(stream) as archive:
        records = archive.infolist()
        prefix = _prefix([record.orig_filename for record in records])
        named = {record.orig_filename.removeprefix(prefix): record for record in records}
        if "constants.pkl" in named:
            raise NotTensors("a TorchScript program")
        if "byteorder" in named:
            order = _read_record(stream, named["byteorder"], 16)
            if order != b"little":
                raise ValueError(f"its numbers are in another byte order, {ascii(order)}")
        pickled = _read_record(stream, named["data.pkl"], _LONGEST)
        value, storages = read_pickle(io.BytesIO(pickled))
        starts = {}
        for key, storage in storages.items():
            record = named.get(f"data/{key}")
            if record is None or record.file_size != _bytes(storage):
                raise ValueError(f"storage {ascii(key)[:100]} is missing or of another size")
            starts[key] = _start(stream, record)
        return value, starts


def _prefix(names: list[str]) -> str:
    """Return the folder that all records of an archive are in, with its slash."""
    folders = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1]
    found = [folder for folder in folders if folder.endswith("/")]
    if len(found) != 1 or len(set(names)) != len(names):
        raise ValueError("its zip archive has no data.pkl, or records of one name")
    for name in names:
        if not name.startswith(found[0]) or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"its zip archive has a record {ascii(name)[:100]}")
    return found[0]


def _start(stream: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Return the position of a record's bytes.

    Raises:
      ValueError: they are compressed or encrypted, which torch never does, or not all there.
    """
    stored = record.compress_type == zipfile.ZIP_STORED and not record.flag_bits & 1
    if not stored or record.compress_size != record.file_size:
        raise ValueError(f"its record {ascii(record.orig_filename)[:100]} is compressed")
    stream.seek(record.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    start = record.header_offset + _LOCAL_HEADER.size + name + extra
    if signature != _ZIP or start + record.file_size > stream.seek(0, io.SEEK_END):
        raise ValueError(f"its record {ascii(record.orig_filename)[:100]} is not there")
    return start


def _read_record(stream: BinaryIO, record: zipfile.ZipInfo, most: int) -> bytes:
    """Return the bytes of a record, at most so many."""
    if record.file_size > most:
        raise ValueError(
            f"its record {ascii(record.orig_filename)[:100]} has {record.file_size} bytes, more "
            f"than {most}"
        )
    stream.seek(_start(stream, record))
    return stream.read(record.file_size)


# the form before torch 1.6


def _read_old(stream: BinaryIO, head: bytes) -> tuple[Any, dict[str, int]]:
    """Return the object, and key -> position of the storage's bytes in the file."""
    if head[257:262] == _TAR:
        raise NotTensors("a tar archive, the form that torch wrote before 0.4")
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    pickles = io.BytesIO(stream.read(_LONGEST))
    magic, version, machine = (read_pickle(pickles)[0] for _ in range(3))
    if type(magic) is not int or magic != _MAGIC:
        raise NotTensors("a pickle that torch.save did not write")
    if type(version) is not int or version != _VERSION or type(machine) is not dict:
        raise ValueError("another version of the format")
    if machine.get("little_endian") is not True:
        raise ValueError("its numbers are in another byte order")
    value, storages = read_pickle(pickles)
    keys, _ = read_pickle(pickles)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError("its list of storages is missing")
    if sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors")
    starts, position = {}, pickles.tell()
    for key in keys:
        stream.seek(position)
        (stored,) = struct.unpack("<q", stream.read(8))
        starts[key] = position + 8
        position = starts[key] + _bytes(storages[key])
        if stored != storages[key].numel or position > size:
            raise ValueError(f"storage {ascii(key)[:100]} is of another size or not all there")
    return value, starts


def _bytes(storage: Storage) -> int:
    return storage.numel * _DTYPES[storage.dtype].itemsize
