"""The bytes that a compiled program moves between HBM and chip, and between chips.

Read from the HLO text of XLA's scheduled program for one device. A loop body counts once per
iteration, taken from the constant in the loop condition (XLA's cost analysis counts it once).
Arrays that the compiler keeps in on-chip memory (a layout with ``S(1)``) are free. Between TPU
slices data goes through the hosts, by a ``send`` that names its collective.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ITEM_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2}
ITEM_BYTES |= {"s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
ITEM_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8}

# Bytes that each collective sends per device in groups of n, as a multiple of its operands.
COLLECTIVES = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-broadcast": lambda n: 1,
    "collective-permute": lambda n: 1,
}
FREE = set(
    "parameter constant tuple get-tuple-element bitcast while call conditional after-all iota "
    "partition-id replica-id opt-barrier optimization-barrier copy-done slice-done async-done "
    "all-gather-done all-reduce-done collective-permute-done send-done recv-done domain".split()
)
FREE_CALLS = ("ConcatBitcast", "AllocateBuffer", "Sharding")  # custom calls that move nothing
VIEWS = ("bitcast", "reshape", "convert", "copy", "transpose")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # the text in the brackets, and the attributes
    root: bool


class Traffic(NamedTuple):
    """Bytes moved per device and call."""

    memory: float  # read from and written to HBM
    collectives: dict[str, float]  # sent to other devices of the slice, by operation
    waited: float = 0.0  # of what is sent, the bytes during which nothing is computed
    outside: float = 0.0  # sent to other slices

    @property
    def network(self) -> float:
        return sum(self.collectives.values())


class _Sent(NamedTuple):
    """What one collective sends."""

    times: float
    kind: str
    size: float  # bytes per device
    alone: bool  # an instruction of its own: the program waits for it


Computation = dict[str, Instruction]


def traffic_of(text: str) -> Traffic:
    """The traffic of one call of a compiled program."""
    computations, entry = parse(text)
    memory = outside = 0.0
    channels: dict[str, _Sent] = {}
    for name, times in _executed(computations, entry):
        for instruction in computations[name].values():
            memory += times * _moved(instruction, computations[name], computations)
            outside += times * _sent_outside(instruction, computations[name])
            for channel, one in _sent(instruction, computations[name], computations):
                one = one._replace(times=times)
                # An asynchronous collective is in pieces, some in a loop: count it once.
                channels[channel] = min(one, channels.get(channel, one))
    sent = dict.fromkeys(COLLECTIVES, 0.0)
    for one in channels.values():
        sent[one.kind] += one.times * one.size
    waited = sum(one.times * one.size for one in channels.values() if one.alone)
    return Traffic(memory, {kind: size for kind, size in sent.items() if size}, waited, outside)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Parse HLO text into computations by name, and the name of the entry computation."""
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        opening = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if opening and not line.startswith(" "):
            current = computations.setdefault(opening[2], {})
            entry = opening[2] if opening[1] else entry
        elif current is not None and (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)):
            current[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    return computations, entry


def _instruction(name: str, text: str, root: bool) -> Instruction:
    kind, after = _split(text) if text.startswith("(") else text.split(" ", 1)
    opcode, _, after = after.strip().partition("(")
    inside, rest = _split("(" + after)
    return Instruction(
        name, kind, opcode, tuple(re.findall(r"%([\w.\-]+)", inside)), inside + rest, root
    )


def _split(text: str) -> tuple[str, str]:
    """Split ``text`` after the bracketed part that it starts with."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: index + 1], text[index + 1 :]
    return text, ""


def size_of(kind: str, *, everywhere: bool = False) -> float:
    """Bytes of a type's arrays in HBM, or in any memory with ``everywhere``, without padding."""
    total = 0.0
    for item, sides, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", kind):
        if item not in ITEM_BYTES or (not everywhere and re.search(r"S\([1-9]", layout)):
            continue
        total += math.prod(map(int, filter(None, sides.split(",")))) * ITEM_BYTES[item]
    return total


def _called(instruction: Instruction, *keys: str) -> list[str]:
    return re.findall(rf"(?:{'|'.join(keys)})=%?([\w.\-]+)", instruction.rest)


def _executed(
    computations: dict[str, Computation], name: str, times: float = 1
) -> Iterator[tuple[str, float]]:
    """Yield (computation, how often it runs), following loops and calls but not fusions.

    Of the branches of a conditional one runs, each as often as the others: that is how the kernels
    of local and of other layers alternate.
    """
    yield name, times
    for instruction in computations[name].values():
        if instruction.opcode == "while":
            body, condition = (_called(instruction, key)[0] for key in ("body", "condition"))
            trips = _trips(instruction, computations[condition])
            yield from _executed(computations, body, times * trips)
        elif instruction.opcode in ("call", "conditional"):
            branches = _called(instruction, "to_apply", "true_computation", "false_computation")
            listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
            branches += re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
            for branch in branches:
                yield from _executed(computations, branch, times / len(branches))


def _trips(loop: Instruction, condition: Computation) -> int:
    """The trip count of a loop that counts from 0 to a constant."""
    known = re.search(r"known_trip_count\D*(\d+)", loop.rest)
    if known:
        return int(known[1])
    constants = [
        int(number)
        for one in condition.values()
        if one.opcode == "constant" and one.type.startswith(("s32[]", "u32[]"))
        for number in re.findall(r"^\((\d+)\)", one.rest)
    ]
    return max(constants, default=1)


def _moved(one: Instruction, around: Computation, computations: dict[str, Computation]) -> float:
    """Bytes that an instruction reads from and writes to HBM."""
    if one.opcode in FREE or (one.opcode == "custom-call" and _is_free_call(one)):
        return 0.0
    if one.opcode.endswith("-start"):
        return _copied(one, around)
    if one.opcode == "fusion":
        return _fused(one, around, computations)
    if one.opcode == "dynamic-update-slice":
        return 2 * size_of(around[one.operands[1]].type)
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * size_of(one.type)
    return size_of(one.type) + sum(size_of(around[name].type) for name in one.operands)


def _is_free_call(one: Instruction) -> bool:
    return any(f'custom_call_target="{name}"' in one.rest for name in FREE_CALLS)


def _copied(one: Instruction, around: Computation) -> float:
    """Bytes of an asynchronous copy, slice or collective: its result, read and written.

    The type lists operands and results. A slice reads only as much as its result. Reads count only
    if an operand is in HBM.
    """
    result = one.type
    for name in one.operands:
        result = result.replace(around[name].type, "", 1)
    whole = sum(size_of(around[name].type, everywhere=True) for name in one.operands)
    read = min(whole, size_of(result, everywhere=True))
    from_hbm = any(size_of(around[name].type) for name in one.operands)
    return size_of(result) + (read if from_hbm else 0.0)


def _fused(one: Instruction, around: Computation, computations: dict[str, Computation]) -> float:
    """Bytes of a fusion: its results, and the part of each operand that it reads (e.g. rows)."""
    inner = computations[_called(one, "calls")[0]]
    users: dict[str, list[Instruction]] = {}
    for instruction in inner.values():
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    passed = _passed_through(one, inner)
    total = sum(_written(one, inner, i.name, passed) for i in inner.values() if i.root)
    for value in inner.values():
        if value.opcode != "parameter":
            continue
        index = int(re.match(r"\((\d+)\)", value.rest)[1])
        size = size_of(around[one.operands[index]].type)
        if size and index not in passed.values():
            total += min(size, _used(value, users, computations))
    return total


def _passed_through(one: Instruction, inner: Computation) -> dict[int, int]:
    """Result -> operand, for the buffers of a collective that a fusion only passes through."""
    if not any(each.opcode in COLLECTIVES for each in inner.values()):
        return {}
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}", one.rest)
    return {int(result): int(operand) for result, operand in pairs}


def _written(one: Instruction, inner: Computation, root: str, passed: dict[int, int]) -> float:
    """Bytes that a fusion writes: its results, or only the slices that it updates in place."""
    results = inner[root].operands if inner[root].opcode == "tuple" else [root]
    results = [_skip_views(name, inner) for name in results]
    total = 0.0
    for index, (name, kind) in enumerate(zip(results, _arrays(one.type), strict=False)):
        if size_of(kind) and index not in passed:
            in_place = inner[name].opcode == "dynamic-update-slice"
            written = inner[inner[name].operands[1]].type if in_place else kind
            total += size_of(written, everywhere=True)
    return total


def _arrays(kind: str) -> list[str]:
    """The arrays of a type, as text."""
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", kind)


def _skip_views(name: str, inner: Computation) -> str:
    """The instruction behind bitcasts and reshapes."""
    while inner[name].opcode in ("bitcast", "reshape"):
        name = inner[name].operands[0]
    return name


def _used(
    value: Instruction,
    users: dict[str, list[Instruction]],
    computations: dict[str, Computation],
) -> float:
    """Bytes of a value inside a fusion that its users read."""
    total = 0.0
    for user in users.get(value.name, []):
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += size_of(user.type, everywhere=True)
        elif _is_view(user, computations):
            total += _used(user, users, computations)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != value.name:
            return size_of(value.type, everywhere=True)
    return total


def _is_view(one: Instruction, computations: dict[str, Computation]) -> bool:
    """Does it only rearrange or convert, so that it is computed where it is used?"""
    if one.opcode != "fusion":
        return one.opcode in VIEWS
    inner = computations[_called(one, "calls")[0]].values()
    return all(each.opcode in (*VIEWS, "parameter") for each in inner)


def _sent(
    one: Instruction, around: Computation, computations: dict[str, Computation]
) -> Iterator[tuple[str, _Sent]]:
    """Yield each channel, and what is sent over it, of an instruction and what is fused into it."""
    kind = one.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        operands = sum(size_of(around[name].type, everywhere=True) for name in one.operands)
        channel = re.search(r"channel_id=(\d+)", one.rest)
        size = operands * COLLECTIVES[kind](_group_size(one.rest))
        yield channel[1] if channel else one.name, _Sent(1, kind, size, kind == one.opcode)
    elif one.opcode in ("fusion", "async-start"):
        for name in _called(one, "calls"):
            for inner in computations[name].values():
                for channel, sent in _sent(inner, computations[name], computations):
                    yield channel, sent._replace(alone=False)


def _sent_outside(one: Instruction, around: Computation) -> float:
    """Bytes that an instruction sends to other slices."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
    if one.opcode != "send" or not kind:
        return 0.0
    slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}', one.rest)[1].count(",") + 1
    size = size_of(around[one.operands[0]].type, everywhere=True)
    return size * COLLECTIVES[kind[1].lower().replace("_", "-")](slices)


def _group_size(rest: str) -> int:
    """The number of devices in a collective's group; 1 if not given (a permutation)."""
    groups = re.search(r"replica_groups=(.*)", rest)
    if not groups:
        return 1
    if listed := re.match(r"\{\{([\d,]+)\}", groups[1]):
        return len(listed[1].split(","))
    if table := re.match(r"\[(\d+),(\d+)\]", groups[1]):
        return int(table[2])
    # On a pod the mesh may list its devices: mesh['a'=8,'b'=32], device_ids=(…) {'b'}
    named = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", groups[1])
    if not named:
        raise ValueError(f"groups of devices in a form that is not known: {groups[1][:80]}")
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
