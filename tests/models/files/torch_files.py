"""Files of torch.save, both forms, written by hand: pickles from their instructions."""

import io
import pickle
import struct
import zipfile

import numpy as np

KINDS = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STOP, FALSE, NONE = b".", b"\x89", b"N"


def number(value):
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def row(*items):
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def numbers(values):
    return row(*map(number, values))


def called(function, *arguments):
    return function + row(*arguments) + b"R"


ORDERED = called(named("collections", "OrderedDict"))


def mapping(items, empty=ORDERED):
    """A dict of name -> instructions."""
    return empty + b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def storage(key, kind, numel, *view):
    names = text("storage"), named("torch", kind), text(key), text("cpu"), number(numel)
    return row(*names, *view) + b"Q"


def rebuilt(stored, shape, strides, offset=0, *more):
    """A tensor; ``more`` are further arguments."""
    function = named("torch._utils", "_rebuild_tensor_v2")
    place = number(offset), numbers(shape), numbers(strides)
    return called(function, stored, *place, FALSE, ORDERED, *more)


def steps(shape):
    """The strides of a contiguous tensor."""
    return [int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape))]


def tensor(key, array, *view):
    """A contiguous tensor that fills its storage."""
    stored = storage(key, KINDS[array.dtype.name], array.size, *view)
    return rebuilt(stored, array.shape, steps(array.shape))


def zip_file(file, pickled, storages, *, folder="archive", order=b"little", extra=()):
    """The form since torch 1.6; ``storages`` is key -> bytes, ``extra`` more (name, bytes)."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", pickled)
        if order is not None:
            archive.writestr(f"{folder}/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"{folder}/data/{key}", data)
        for name, data in extra:
            archive.writestr(name, data)
    return file


def old_file(file, pickled, storages, *, magic=MAGIC, version=VERSION, machine=None, keys=None):
    """The form before; ``storages`` is key -> array."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}
    whole = io.BytesIO()
    for value in (magic, version, machine or facts):
        pickle.dump(value, whole, 2)
    whole.write(pickled)
    pickle.dump(list(storages) if keys is None else keys, whole, 2)
    for array in storages.values():
        whole.write(struct.pack("<q", array.size) + array.tobytes())
    file.write_bytes(whole.getvalue())
    return file


def state_dict(weights):
    """The pickle of a state dict of contiguous tensors, keys 0, 1, …"""
    items = {name: tensor(str(i), array) for i, (name, array) in enumerate(weights.items())}
    return b"\x80\x02" + mapping(items) + STOP


def write_old(file, weights):
    arrays = {str(i): array for i, array in enumerate(weights.values())}
    return old_file(file, state_dict(weights), arrays)


def write_torch(file, weights):
    """What torch.save writes for name -> array."""
    data = {str(i): array.tobytes() for i, array in enumerate(weights.values())}
    return zip_file(file, state_dict(weights), data)
