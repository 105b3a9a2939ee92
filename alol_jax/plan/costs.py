"""The cost of a compiled program on a chip."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax

from alol_jax.devices.out_of_memory import bytes_asked, is_out_of_memory
from alol_jax.devices.sharding import bytes_per_device
from alol_jax.errors import UserError
from alol_jax.plan.chips import Chip
from alol_jax.plan.programs import Program
from alol_jax.plan.traffic import Traffic, traffic_of


class Memory(NamedTuple):
    """Memory use in bytes per chip; ``peak`` is the sum."""

    weights: float
    optimizer: float
    batch: float  # other arguments, results, and the padding of all arguments to tiles
    activations: float  # temporaries: saved for the backward pass, copies, gradients
    program: float  # instructions

    @property
    def peak(self) -> float:
        return sum(self)


class Cost(NamedTuple):
    """The cost of one program on one topology. Times are lower bounds, at peak performance.

    ``memory`` and ``traffic`` are None if the program does not fit: the compiler then reports only
    the total. ``traffic`` is also None if jaxlib cannot print the program of a newer libtpu.
    """

    name: str
    memory: Memory | None
    traffic: Traffic | None
    peak: float  # bytes per chip
    flops: float  # per chip
    chip: Chip
    compile_seconds: float
    rows: int = 0  # of the grid that it reads, on all chips together; 0 for decoding
    width: int = 0

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.peak <= self.chip.usable

    @property
    def seconds(self) -> float:
        """The largest of `times`; what the program waits for comes on top of compute and memory."""
        waited = self.traffic.waited / self.chip.interconnect if self.traffic is not None else 0.0
        working = [self.times[what] for what in ("compute", "memory") if what in self.times]
        return max(*self.times.values(), max(working) + waited)

    @property
    def tokens_per_second(self) -> float:
        """Of the grid that it reads, on all chips together, padding included."""
        return self.rows * self.width / self.seconds

    @property
    def bound(self) -> str:
        """The bottleneck: compute, memory, network or slices."""
        return max(self.times, key=self.times.get)

    @property
    def times(self) -> dict[str, float]:
        """Seconds that compute, memory, the network and that between slices are busy.

        Unknown ones are left out.
        """
        times = {"compute": self.flops / self.chip.flops}
        if self.traffic is not None:
            times["memory"] = self.traffic.memory / self.chip.bandwidth
            times["network"] = self.traffic.network / self.chip.interconnect
            if self.traffic.outside and self.chip.outside:
                times["slices"] = self.traffic.outside / self.chip.outside
        return times


def cost_of(program: Program, chip: Chip, chips: int) -> Cost:
    """Compile a described program for ``chips`` chips and analyse it."""
    started = time.monotonic()
    lowered = program.function.trace(*program.arguments).lower(lowering_platforms=("tpu",))
    memory = traffic = None
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        peak = bytes_asked(str(error)) if is_out_of_memory(error) else None
        if peak is None:
            message = str(error).strip().splitlines()[0]
            raise UserError(f"{program.name} cannot be compiled for this TPU: {message}") from error
    else:
        memory, traffic = _memory(program, compiled.memory_analysis()), _traffic(compiled)
        peak = memory.peak
    seconds = time.monotonic() - started
    size = (program.grid.rows, program.grid.width) if program.grid else (0, 0)
    flops = program.flops / chips
    return Cost(program.name, memory, traffic, peak, flops, chip, seconds, *size)


def _traffic(compiled: jax.stages.Compiled) -> Traffic | None:
    try:
        return traffic_of(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        return None


def _memory(program: Program, analysis: Any) -> Memory:
    """Split XLA's memory analysis of one device's program into its parts."""
    weights, optimizer = bytes_per_device(program.weights), bytes_per_device(program.optimizer)
    idle = bytes_per_device(program.idle)
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        weights=weights,
        optimizer=optimizer,
        batch=analysis.argument_size_in_bytes + results + idle - weights - optimizer,
        activations=analysis.temp_size_in_bytes,
        program=analysis.generated_code_size_in_bytes,
    )
