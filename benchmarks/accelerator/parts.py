"""The parts of the measurement, by name, in order of importance.

A part tells rows as it finds them. ``seconds`` is when it is stopped: about twice what an H100 is
expected to need, compiling and starting a process included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.accelerator import answers, kernels, nf4, profile, pytorch, steps, values
from benchmarks.accelerator.measuring import Tell


class Part(NamedTuple):
    """A function that tells rows, and the most seconds that it gets."""

    run: Callable[[Tell, bool], None]
    seconds: float
    torch: bool = False  # leaves the device to torch


PARTS: dict[str, Part] = {
    "kernels": Part(kernels.run, 150),
    "nf4": Part(nf4.run, 60),
    "values": Part(values.run, 120),
    "steps-1b": Part(steps.one_b, 100),
    "steps-7b": Part(steps.seven_b, 120),
    "decode-1b": Part(answers.one_b, 60),
    "decode-slots": Part(answers.refilled, 60),
    "torch-decode": Part(pytorch.generate, 60, torch=True),
    "objectives": Part(steps.objectives, 70),
    "steps-xl": Part(steps.xl, 80),
    "decode-7b": Part(answers.seven_b, 90),
    "profile": Part(profile.run, 110),
    "torch-step": Part(pytorch.step, 60, torch=True),
}
