"""How a thing is timed, what memory it took, and what the device could do at best.

    FLOP/s share = FLOPs in closed form / (median seconds · data sheet)        GiB = 2³⁰ bytes

The model's share (MFU) counts no recomputation; the hardware's share counts it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from alol_jax.plan.chips import CHIPS

Row = dict[str, Any]
Tell = Callable[[Row], None]


class Sheet(NamedTuple):
    """What a device can do at best."""

    flops: float  # dense bf16 FLOP/s
    bandwidth: float  # bytes/s of its memory


def _tpu(kind: str) -> Sheet:
    return Sheet(CHIPS[kind].flops, CHIPS[kind].bandwidth)


SHEETS: tuple[tuple[str, Sheet], ...] = (
    ("H100 PCIe", Sheet(756e12, 2.0e12)),
    ("H100", Sheet(989e12, 3.35e12)),  # SXM
    ("H200", Sheet(989e12, 4.8e12)),
    ("A100", Sheet(312e12, 2.039e12)),  # of 80 GB
    ("TPU v4", _tpu("v4")),
    ("TPU v5 lite", _tpu("v5e")),
    ("TPU v5e", _tpu("v5e")),
    ("TPU v5", _tpu("v5p")),
    ("TPU v6", _tpu("v6e")),
)
"""(part of ``device_kind``, its data sheet): NVIDIA's data sheets, `plan.chips`. First match."""


def sheet() -> Sheet | None:
    """Return the data sheet of the first device, or None if it is not in the table."""
    kind = jax.devices()[0].device_kind
    return next((found for name, found in SHEETS if name in kind), None)


def about() -> Row:
    """The device and the versions of what is measured."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "capability": str(getattr(device, "compute_capability", "")),
        "runtime": " ".join(device.client.platform_version.split()),
        "jax": jax.__version__,
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
    }


def peak_bytes() -> int | None:
    """Return this process's peak device memory so far; None if the device does not report it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def analysed_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Return what the compiled program needs: arguments, results and temporaries."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def compiled(function: Any, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """Compile a jitted function for these arguments; return it and the seconds that it took."""
    began = time.perf_counter()
    found = function.lower(*arguments).compile()
    return found, time.perf_counter() - began


def median_of(call: Callable[[], Any], *, most: int, seconds: float) -> float:
    """Return the median seconds of ``call``, its result ready, after two calls to warm up.

    At least 3 and at most ``most`` calls are timed, and none begins after ``seconds``.
    """
    for _ in range(2):
        jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < 3 or (len(times) < most and sum(times) < seconds):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def in_a_row(call: Callable[[], Any], *, seconds: float) -> float:
    """Return the seconds of a call that is too short to time alone.

    Many calls are dispatched without waiting in between; the median of three such series.
    """
    one = median_of(call, most=3, seconds=seconds)
    count = min(max(int(seconds / 3 / one), 1), 100)

    def series():
        for _ in range(count - 1):
            call()
        return call()

    return median_of(series, most=3, seconds=seconds) / count


def shares(work: float, seconds: float, again: float | None = None) -> Row:
    """TFLOP, TFLOP/s and the share of the data sheet.

    Args:
        work: FLOPs without recomputation; again: with it.
    """
    best = sheet()
    row: Row = {"tflop": work / 1e12, "tflop_per_second": work / seconds / 1e12}
    if best is not None:
        row["mfu"] = work / seconds / best.flops
        if again is not None:
            row["hardware_share"] = again / seconds / best.flops
    return row


def attempt(tell: Tell, what: str, run: Callable[[], Row]) -> None:
    """Tell the row that ``run`` returns, or one line with its error, so that others go on."""
    before = peak_bytes()
    try:
        row = run()
    except Exception as error:  # whatever it is, it is the result
        said = (str(error).strip().splitlines() or [""])[0]
        tell({"what": what, "failed": f"{type(error).__name__}: {said}"[:300]})
        return
    after = peak_bytes()
    # The counter never falls: a program that stays below an earlier one has no peak of its own.
    own = {"peak_bytes": after} if after is not None and after > (before or 0) else {}
    tell({"what": what} | own | row)
