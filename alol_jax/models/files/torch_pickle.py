"""The pickles inside torch files, read without running them.

A pickle is a program that may call anything. `pickletools` splits it into instructions, without
following any. `read_pickle` follows those that torch.save writes for a dict of tensors: they make
numbers, texts, tuples, lists and dicts, and the few calls in `_called` make a `Tensor`, which says
where its elements lie. Nothing is imported, no attribute is looked up or set, no class is made, and
memory grows with the length of the pickle alone.
https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
from collections.abc import Callable, Sequence
from typing import Any

STORAGES = {
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
"""The kinds of storage, by module and name -> their dtypes as safetensors names them."""

_CALLS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_parameter_with_state",
    }
)
_LARGEST = 2**63 - 1
_MOST_AXES = 64  # as in torch and numpy


class NotTensors(Exception):
    """A pickle asks for something other than tensors; the message names it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """``size`` elements from ``start`` on, of the ``numel`` that a file stores under ``key``."""

    key: str
    dtype: str  # a value of STORAGES
    numel: int
    start: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """Elements of a storage, from ``offset`` on; it holds no more of them than the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


@dataclasses.dataclass(frozen=True, slots=True)
class _Global:
    """The name of a class or function; there is nothing behind it."""

    name: str


def read_pickle(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle, up to its last instruction.

    Returns:
      The value, made of None, bool, int, float, str, tuple, list, dict and `Tensor`, and key ->
      whole storage for the storages that it names.

    Raises:
      NotTensors: an instruction, class or function that no dict of tensors needs.
      ValueError: the pickle is damaged, or a tensor reaches beyond its storage.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name == "INST":
                raise NotTensors(_shown(argument))
            if instruction.name not in _INSTRUCTIONS:
                raise NotTensors(f"the pickle instruction {instruction.name}")
            _INSTRUCTIONS[instruction.name](machine, argument)
    except (IndexError, KeyError) as error:
        raise ValueError("its pickle uses what it has not made") from error
    if len(machine.stack) != 1 or machine.outer:
        raise ValueError("its pickle makes no single value")
    return machine.stack[0], machine.storages


class _Machine:
    """The state of the stack machine."""

    def __init__(self) -> None:
        self.stack: list[Any] = []  # since the last mark
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def push(self, item: Any) -> None:
        self.stack.append(item)

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Remove the last mark and return what lies above it."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        """Remove and return the last ``count`` items."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def push_global(self, name: str) -> None:
        """Push the name of a class or function ("module name"), if it is a known one."""
        if name not in STORAGES and name not in _CALLS:
            raise NotTensors(_shown(name))
        self.push(_Global(name))

    def stack_global(self) -> None:
        module, name = self.pop(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("its pickle names a class by something that is no text")
        self.push_global(f"{module} {name}")

    def push_storage(self) -> None:
        """Replace a persistent id, the way to name a storage, by the storage."""
        storage = _storage(self.stack.pop())
        whole = dataclasses.replace(storage, start=0, size=storage.numel)
        if self.storages.setdefault(storage.key, whole) != whole:
            raise ValueError(f"storage {storage.key!r} has two types or sizes")
        self.push(storage)

    def call(self) -> None:
        function, arguments = self.pop(2)
        if type(function) is not _Global or type(arguments) is not tuple:
            raise ValueError("its pickle calls what is no function")
        self.push(_called(function.name, arguments))

    def build(self) -> None:
        """Drop the attributes of an OrderedDict: a state dict has ``_metadata``."""
        state = self.stack.pop()
        if type(self.stack[-1]) is not dict or type(state) is not dict:
            raise NotTensors("an object with attributes")

    def extend(self, items: Sequence[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def update(self, items: Sequence[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise ValueError("its pickle sets items of what is no dict")
        # The hash of another key, of nested tuples say, may take forever.
        if len(items) % 2 or any(type(key) is not str for key in items[::2]):
            raise NotTensors("a dict whose keys are no names")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))


# Instruction -> what it does, given the machine and the instruction's argument.
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,  # how far to read ahead
    "STOP": lambda m, _: None,
    "MARK": lambda m, _: m.mark(),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
        lambda m, value: m.push(value),
    ),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.update(m.pop(2)),
    "SETITEMS": lambda m, _: m.update(m.since_mark()),
    "BINPUT": lambda m, index: m.memo.__setitem__(index, m.stack[-1]),
    "LONG_BINPUT": lambda m, index: m.memo.__setitem__(index, m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": lambda m, name: m.push_global(name),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "BINPERSID": lambda m, _: m.push_storage(),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}


def _called(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return what one of `_CALLS` returns; a parameter is its tensor."""
    match name.split()[1], arguments:
        case "OrderedDict", ():
            return {}
        case "_rebuild_tensor", (Storage() as storage, offset, shape, strides):
            return _tensor(storage, offset, shape, strides)
        case (
            "_rebuild_tensor_v2",
            (Storage() as storage, offset, shape, strides, bool(), dict(), *bits),
        ) if len(bits) < 2 and not any(bits):  # bits say that numbers are stored negated
            return _tensor(storage, offset, shape, strides)
        case "_rebuild_parameter", (Tensor() as tensor, bool(), dict()):
            return tensor
        case "_rebuild_parameter_with_state", (Tensor() as tensor, bool(), dict(), _):
            return tensor
    raise NotTensors(f"{_shown(name)} with arguments that are not those of a plain tensor")


def _storage(identity: Any) -> Storage:
    """Return the storage that torch's persistent id names; the old form has views of storages."""
    match identity:
        case ("storage", _Global(name), str() as key, str(), numel, *view) if (
            name in STORAGES and len(view) < 2 and _is_size(numel)
        ):
            start, size = 0, numel
            if view and view[0] is not None:
                start, size = _view(view[0], numel)
            return Storage(key, STORAGES[name], numel, start, size)
    raise NotTensors("a persistent id that names no storage")


def _view(view: Any, numel: int) -> tuple[int, int]:
    match view:
        case (str(), start, size) if _is_size(start) and _is_size(size) and start + size <= numel:
            return start, size
    raise ValueError("a view reaches beyond its storage")


def _tensor(storage: Storage, offset: Any, shape: Any, strides: Any) -> Tensor:
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise ValueError("a tensor without a shape or with other strides")
    extent = math.prod(n for n in shape[:_MOST_AXES] if type(n) is int and n)
    if len(shape) > _MOST_AXES or not all(map(_is_size, (offset, *shape, *strides, 8 * extent))):
        raise ValueError("a tensor of an impossible shape, stride or offset")
    steps = ((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if count and offset + sum(steps) >= storage.size:
        raise ValueError(f"a tensor reaches beyond its storage of {storage.size} elements")
    if count > storage.size:  # could be endless
        raise NotTensors(
            f"a tensor of {count} elements in a storage of {storage.size}, as expand makes it"
        )
    return Tensor(storage, offset, shape, strides)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _shown(name: str) -> str:
    """Return "module name" as one short, printable word."""
    shown = name.replace(" ", ".")[:100]
    return shown if shown.isprintable() else ascii(shown)
