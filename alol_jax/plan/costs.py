"""What a program costs on a chip: compiled for it, without it."""

from __future__ import annotations

import math
import re
import time
from typing import Any, NamedTuple

import jax

from alol_jax.plan.chips import GIB, Chip
from alol_jax.plan.programs import Program
from alol_jax.plan.traffic import Traffic, traffic_of
from alol_jax.types import UserError


class Memory(NamedTuple):
    """Bytes per chip. ``peak`` is all of it together."""

    weights: float
    optimizer: float
    batch: float  # other arguments, results, and what padding to tiles adds to all of them
    activations: float  # temporaries: what is kept for the backward pass, copies, gradients
    program: float  # instructions

    @property
    def peak(self) -> float:
        return sum(self)


class Cost(NamedTuple):
    """One program on one topology. Times are what the chip could do at best.

    ``memory`` is None where the compiler gave up and said only what is needed in all; ``traffic``
    is None there, and where a libtpu newer than jaxlib makes a program that jaxlib cannot print.
    """

    name: str
    memory: Memory | None
    traffic: Traffic | None
    peak: float  # bytes per chip
    flops: float  # per chip
    chip: Chip
    compile_seconds: float

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.peak <= self.chip.usable

    @property
    def seconds(self) -> float:
        return max(self.times.values())

    @property
    def bound(self) -> str:
        """What takes longest: compute, memory or network."""
        return max(self.times, key=self.times.get)

    @property
    def times(self) -> dict[str, float]:
        """Seconds that each part of the chip is busy, of what is known."""
        times = {"compute": self.flops / self.chip.flops}
        if self.traffic is not None:
            times["memory"] = self.traffic.memory / self.chip.bandwidth
            times["network"] = self.traffic.network / self.chip.interconnect
        return times


def per_chip(tree: Any) -> float:
    """Bytes of described arrays that lie on one chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def cost_of(program: Program, chip: Chip, chips: int) -> Cost:
    """Compiles a described program for ``chips`` chips and reads what it needs."""
    started = time.monotonic()
    lowered = program.function.trace(*program.arguments).lower(lowering_platforms=("tpu",))
    memory = traffic = None
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        peak = needed(str(error))
        if peak is None:
            said = str(error).strip().splitlines()[0]
            raise UserError(f"{program.name} cannot be compiled for this TPU: {said}") from error
    else:
        memory, traffic = _memory(program, compiled.memory_analysis()), _traffic(compiled)
        peak = memory.peak
    seconds = time.monotonic() - started
    return Cost(program.name, memory, traffic, peak, program.flops / chips, chip, seconds)


def _traffic(compiled: jax.stages.Compiled) -> Traffic | None:
    try:
        return traffic_of(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        return None


def _memory(program: Program, analysis: Any) -> Memory:
    """The parts of what XLA's analysis of one device's program sums up."""
    weights, optimizer = per_chip(program.weights), per_chip(program.optimizer)
    beside = optimizer if program.optimizer_waits else 0.0  # in memory, but no argument
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        weights=weights,
        optimizer=optimizer,
        batch=analysis.argument_size_in_bytes + results + beside - weights - optimizer,
        activations=analysis.temp_size_in_bytes,
        program=analysis.generated_code_size_in_bytes,
    )


def needed(message: str) -> float | None:
    """Bytes that XLA says a program needs that does not fit; None for another error."""
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM", message)
    return float(found[1]) * units[found[2]] if found else None
