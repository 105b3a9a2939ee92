"""Out of memory, on a device or on the host: one line that says what to lower."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from alol_jax.errors import UserError

SAVINGS = {
    "remat": "config.model.remat=full",
    "chunk": "config.model.logprob_chunk",
    "grids": "config.model.rows, config.model.width or config.decode.batch_size",
    "quantisation": "config.model.quantisation=nf4",
    "chips": "more devices (config.mesh)",
}
"""What saves memory, from cheapest to most expensive, the order in which `plan` tries it: a name,
and what to change."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+) ?([KMGT]?)(?:i?B\b| ?bytes\b|\b)"
# What XLA's allocators and compilers, and numpy, say of the bytes that are missing.
_ASKED = (
    rf"\({_SIZE}\) exceeds available",
    rf"[Uu]sed {_SIZE} of",
    rf"[Aa]llocat(?:e|ing) {_SIZE}",
)
_FREE = rf"[Tt]here (?:is|are) {_SIZE} free"
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", "ALLOC_FAILED")


class Program(NamedTuple):
    """What is running.

    Attributes:
        name: in words.
        rows, width: of the grid that it computes, in tokens; 0 if it has none.
        lower: what to change so that it needs less, the cheapest first.
    """

    name: str
    rows: int = 0
    width: int = 0
    lower: Sequence[str] = tuple(SAVINGS.values())


class OutOfMemory(UserError):
    """A program needs more memory than there is."""

    def __init__(self, program: Program, said: str) -> None:
        self.program, self.said = program, said
        super().__init__(_line(program, said))


@contextlib.contextmanager
def watching_memory(program: Program) -> Iterator[None]:
    """Turn the error of a failed allocation into `OutOfMemory`; the innermost program is named."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(program, str(error)) from error


@contextlib.contextmanager
def watching_stage(name: str) -> Iterator[None]:
    """`watching_memory` of a stage, whose name is said beside that of the program in it."""
    try:
        with watching_memory(Program(f"the stage {name}")):
            yield
    except OutOfMemory as error:
        program, said = error.program, error.said
        if name in program.name:
            raise
        raise OutOfMemory(program._replace(name=f"{program.name} of {name}"), said) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated."""
    said = str(error)
    return isinstance(error, MemoryError) or any(word in said for word in _EXHAUSTED)


def bytes_asked(message: str) -> float | None:
    """Return the bytes that could not be allocated, as a message says; None if it does not."""
    return next((size for one in _ASKED if (size := _bytes(one, message)) is not None), None)


def _bytes(pattern: str, message: str) -> float | None:
    found = re.search(pattern, message)
    return float(found[1].rstrip(".")) * _UNITS[found[2]] if found else None


def _bytes_free() -> float | None:
    """Return what is free on the fullest device of this process; None if one does not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if not all({"bytes_limit", "bytes_in_use"} <= one.keys() for one in stats):
        return None
    return min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)


def _line(program: Program, said: str) -> str:
    asked, free = bytes_asked(said), _bytes(_FREE, said)
    free = _bytes_free() if free is None else free
    grid = f", on a grid of {program.rows} × {program.width} tokens" if program.rows else ""
    sizes = [] if asked is None else [f"{_in_words(asked)} asked"]
    sizes += [] if free is None else [f"{_in_words(free)} free"]
    told = f" ({', '.join(sizes)})" if sizes else ""
    return (
        f"out of memory in {program.name}{grid}{told}: lower, in this order, "
        f"{'; '.join(program.lower)}; then run the same command again: what is done stays"
    )


def _in_words(size: float) -> str:
    unit = next((unit for unit in "TGMK" if size >= _UNITS[unit]), "")
    return f"{size / _UNITS[unit]:.4g} {unit}iB" if unit else f"{size:.0f} B"
