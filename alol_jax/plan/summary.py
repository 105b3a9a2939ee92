"""The result of a plan as a text table, a one-line verdict and JSON."""

from __future__ import annotations

import json

from alol_jax.plan.chips import GIB, in_gib
from alol_jax.plan.costs import Cost
from alol_jax.plan.data import Epoch
from alol_jax.plan.setting import Setting

_OUTSIDE = 10  # the column for several slices


def table(costs: list[Cost]) -> str:
    """One line per program, all numbers per chip; unknown ones are "-"."""
    head = (
        "per chip", "weights", "optimizer", "activations", "other", "peak GiB", "TFLOP", "GB moved",
        "GB sent", "waited for", "GB outside", "seconds", "tokens/s", "bound", "compiled in",
    )  # fmt: skip
    rows = [head, *(_line(cost) for cost in costs)]
    if not any(cost.traffic and cost.traffic.outside for cost in costs):  # one slice
        rows = [(*row[:_OUTSIDE], *row[_OUTSIDE + 1 :]) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _line(cost: Cost) -> tuple[str, ...]:
    sizes, moved = ["-"] * 4, ["-"] * 4
    if (m := cost.memory) is not None:
        parts = (m.weights, m.optimizer, m.activations, m.batch + m.program)
        sizes = [f"{part / GIB:.2f}" for part in parts]
    if (traffic := cost.traffic) is not None:
        parts = (traffic.memory, traffic.network, traffic.waited, traffic.outside)
        moved = [f"{size / 1e9:.3g}" for size in parts]
    return (
        cost.name,
        *sizes,
        f"{cost.peak / GIB:.2f} of {cost.chip.usable / GIB:.2f}",
        f"{cost.flops / 1e12:.3g}",
        *moved,
        f"{cost.seconds:.3g}" if cost.traffic else f"≥ {cost.seconds:.3g}",
        f"{cost.tokens_per_second:,.0f}" if cost.rows and cost.traffic else "-",
        cost.bound if cost.traffic else "-",
        f"{cost.compile_seconds:.0f} s",
    )


def epoch_line(epoch: Epoch, costs: list[Cost]) -> str:
    """Say how many tokens of the data are trained on per second, and how long an epoch takes.

    Both are bounds, as every time of a plan is.
    """
    line = f"data: {epoch.items:,} items of {epoch.tokens / epoch.items:.0f} tokens, "
    line += f"real tokens {epoch.real:.0%}"
    step = next((cost for cost in costs if cost.name == "policy step"), None)
    if step is None or step.traffic is None:
        return line
    rate = step.tokens_per_second * epoch.real
    seconds = epoch.tokens / rate
    return f"{line}: at most {rate:,.0f} of them per second, an epoch of at least {seconds:,.1f} s"


def chip_hours(setting: Setting, costs: list[Cost]) -> dict[str, float]:
    """Program -> the least chip-hours for a million tokens, or for a thousand answers (decode)."""
    hours = {}
    for cost in costs:
        if cost.traffic is not None:
            unit = (
                cost.rows * cost.width / 1e6
                if cost.rows
                else setting.config.decode.batch_size / 1e3
            )
            hours[cost.name] = setting.chips * cost.seconds / 3600 / unit
    return hours


def chip_hours_line(setting: Setting, costs: list[Cost]) -> str:
    """The chip-hours of each program in words. Tokens are those of a grid, padding included."""
    told = (
        f"{name} {hours:.3g} per {'thousand answers' if name == 'decode' else 'million tokens'}"
        for name, hours in chip_hours(setting, costs).items()
    )
    return "chip-hours, at least: " + (", ".join(told) or "-")


def verdict(setting: Setting, costs: list[Cost], knob: str) -> str:
    """Say in one line whether it fits, and what would help."""
    worst = max(costs, key=lambda cost: cost.peak)
    memory = f"{worst.name} needs {in_gib(worst.peak)} of {in_gib(worst.chip.usable)} per chip"
    several = f"{setting.slices} × " if setting.slices > 1 else ""
    on = f"{setting.chips} × {setting.topology.kind} ({several}{setting.topology.name})"
    if all(cost.fits for cost in costs):
        return f"fits on {on}: {memory}"
    helps = f"fits with {knob}" if knob else "nothing that was tried makes it fit"
    return f"does not fit on {on}: {memory}; {helps}"


def as_json(setting: Setting, costs: list[Cost], knob: str) -> str:
    """The table, the verdict and their parts as JSON."""
    epoch = setting.epoch and setting.epoch._asdict() | {"shape": setting.epoch.shape._asdict()}
    programs = [
        {
            "name": cost.name,
            "fits": cost.fits,
            "peak_bytes": cost.peak,
            "usable_bytes": cost.chip.usable,
            "memory_bytes": cost.memory and cost.memory._asdict(),
            "flops": cost.flops,
            "moved_bytes": cost.traffic and cost.traffic.memory,
            "sent_bytes": cost.traffic and cost.traffic.collectives,
            "waited_bytes": cost.traffic and cost.traffic.waited,
            "outside_bytes": cost.traffic and cost.traffic.outside,
            "times": cost.times,
            "seconds": cost.seconds,
            "grid": [cost.rows, cost.width],
            "bound": cost.bound,
            "compile_seconds": cost.compile_seconds,
        }
        for cost in costs
    ]
    found = {
        "topology": setting.topology.name,
        "slices": setting.slices,
        "chips": setting.chips,
        "model": setting.config.model.to_dict(),
        "mesh": setting.config.mesh.to_dict(),
        "slots": setting.config.decode.batch_size,
        "programs": programs,
        "chip_hours": chip_hours(setting, costs),
        "epoch": epoch,
        "fits": all(cost.fits for cost in costs),
        "knob": knob,
        "verdict": verdict(setting, costs, knob),
    }
    return json.dumps(found, indent=1)
