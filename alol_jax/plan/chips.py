"""TPU chips and topologies.

Numbers are per chip, from Google Cloud's public pages https://cloud.google.com/tpu/docs/v4, /v5e,
/v5p and /v6e (peak bf16 compute, HBM bandwidth). The interconnect is what one chip can send: the
all-reduce bandwidth of a pod divided by its chips (v4: 1.1 PB/s / 4096, v5e: 51.2 TB/s / 256,
v6e: 102.4 TB/s / 256), and 4800 Gbps for v5p. Between slices, a chip has its share of
its host's network (v5e: 2 × 100 Gbps / 8, v6e: 4 × 200 Gbps / 8). ``usable`` is the HBM that XLA
leaves to a program, taken from the compiler's message when a program is too large (libtpu 0.0.52).
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from alol_jax.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """The peak performance of a chip."""

    usable: float  # bytes of HBM available to a program
    flops: float  # bf16 FLOP/s
    bandwidth: float  # bytes/s between HBM and the chip
    interconnect: float  # bytes/s that a chip can send to others of its slice
    outside: float | None  # bytes/s that a chip can send to other slices; None: not published
    dimensions: int  # of a topology
    slices: tuple[str, ...]  # usual topologies, ascending
    settings: dict[str, str]  # topology options with which one device is one chip


_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SPACE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

CHIPS: dict[str, Chip] = {
    "v4": Chip(
        30.75 * GIB, 275e12, 1200e9, 268e9, None, 3, _SPACE, {"chip_config_name": "megacore"}
    ),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, 3.125e9, 2, _PLANE, {}),
    "v5p": Chip(95.73 * GIB, 459e12, 2765e9, 600e9, None, 3, _SPACE, {}),
    "v6e": Chip(31.24 * GIB, 918e12, 1638e9, 400e9, 12.5e9, 2, _PLANE, {}),
}


class Slice(NamedTuple):
    """A topology by name: ``v5e:2x4`` is 8 chips of v5e."""

    kind: str  # a key of `CHIPS`
    shape: str

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.shape}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.shape.split("x"))

    @property
    def settings(self) -> dict[str, object]:
        """Topology options for the compiler; one chip alone needs a one-chip host."""
        alone = {"chips_per_host_bounds": (1, 1, 1)} if self.chips == 1 else {}
        return self.chip.settings | alone

    @property
    def larger(self) -> Slice | None:
        """The next usual topology of the same chip with at least twice as many chips."""
        all_of_them = (Slice(self.kind, shape) for shape in self.chip.slices)
        return next((one for one in all_of_them if one.chips >= 2 * self.chips), None)


def read_topology(text: str) -> Slice:
    """Parse a topology like ``v5e:2x4``.

    Raises:
        UserError: the chip is unknown, or the shape has the wrong number of dimensions.
    """
    kind, _, shape = text.partition(":")
    if kind not in CHIPS:
        raise UserError.unknown(f"--topology={text}: no chip {kind!r}", kind, CHIPS)
    sides = CHIPS[kind].dimensions
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{sides - 1}}}", shape):
        usual = ", ".join(f"{kind}:{shape}" for shape in CHIPS[kind].slices[:5])
        raise UserError(f"--topology={text}: {kind} has {sides} dimensions, like {usual}")
    return Slice(kind, shape)


def in_gib(size: float) -> str:
    """Format a number of bytes as GiB."""
    return f"{size / GIB:.2f} GiB"
