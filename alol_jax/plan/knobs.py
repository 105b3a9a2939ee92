"""Changes that make a program fit in memory, each tried by compiling again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alol_jax.models.grid_sizes import platform_of
from alol_jax.objectives.registry import num_responses
from alol_jax.plan.chips import in_gib
from alol_jax.plan.costs import Cost
from alol_jax.plan.programs import largest_grid
from alol_jax.plan.setting import Setting


def _changed(setting: Setting, **values: Any) -> Setting:
    """The setting with other config values; dots in keys are written as two underscores."""
    config = ConfigDict(setting.config.to_dict())
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in values.items()})
    return dataclasses.replace(setting, config=config)


def with_remat(setting: Setting) -> tuple[str, Setting] | None:
    """Recompute activations in the backward pass."""
    if setting.config.model.remat == "full":
        return None
    return "config.model.remat=full", _changed(setting, model__remat="full")


def with_smaller_chunk(setting: Setting) -> tuple[str, Setting] | None:
    """Compute an eighth of the logits at a time."""
    count = num_responses(setting.objective, setting.config.objective)
    if setting.epoch is None:
        room = setting.topology.chip.usable
        shape = largest_grid(setting.open(), count, room, training=True)
    else:
        shape = setting.epoch.shape
    chunk = min(setting.config.model.logprob_chunk, shape.rows * shape.targets) // 8
    if chunk < 64:
        return None
    return f"config.model.logprob_chunk={chunk}", _changed(setting, model__logprob_chunk=chunk)


def with_smaller_grids(setting: Setting) -> tuple[str, Setting] | None:
    """Take the smallest grids that hold the longest example, and half the slots."""
    c, lm = setting.config, setting.open()
    count = num_responses(setting.objective, c.objective)
    copies = 1 if lm.transformer.attention.branches else count
    longest = copies * lm.limits.prompt + count * lm.limits.response
    multiple = platform_of(lm.mesh).multiple
    width, slots = -(-longest // multiple) * multiple, c.decode.batch_size // 2
    values = {"model__width": width, "model__rows": lm.shards}
    if slots and slots % lm.shards == 0:
        values["decode__batch_size"] = slots
    if all(c[key.split("__")[0]][key.split("__")[1]] == value for key, value in values.items()):
        return None
    changes = (f"config.{key.replace('__', '.')}={value}" for key, value in values.items())
    return ", ".join(changes), _changed(setting, **values)


def with_quantisation(setting: Setting) -> tuple[str, Setting] | None:
    """Store the frozen base in NF4."""
    model = setting.config.model
    if model.quantisation != "none" or model.lora.rank == 0:
        return None
    return "config.model.quantisation=nf4", _changed(setting, model__quantisation="nf4")


def with_more_chips(setting: Setting) -> tuple[str, Setting] | None:
    """Shard over all chips of the topology, or over the next larger topology."""
    topology = setting.topology
    slices = setting.slices
    larger = topology if setting.chips < topology.chips else topology.larger
    if larger is None:
        return None
    tensor = max(setting.config.mesh.tensor, 1)
    chips = larger.chips * slices
    rows = chips // tensor
    slots = -(-setting.config.decode.batch_size // rows) * rows
    mesh = {"mesh__data": slices, "mesh__fsdp": -1, "mesh__tensor": tensor}
    changed = _changed(setting, decode__batch_size=slots, **mesh)
    change = f"--topology={larger.name} with config.mesh data={slices}, fsdp=-1"
    if slots != setting.config.decode.batch_size:
        change += f", config.decode.batch_size={slots}"
    return change, dataclasses.replace(changed, topology=larger, chips=chips)


class Knob(NamedTuple):
    """A change that saves memory, and the programs in which it does."""

    # Returns the change in words and the new setting; None if it is not possible.
    apply: Callable[[Setting], tuple[str, Setting] | None]
    helps: frozenset[str]


KNOBS: dict[str, Knob] = {
    "remat": Knob(with_remat, frozenset({"policy step"})),
    "chunk": Knob(with_smaller_chunk, frozenset({"select", "policy step"})),
    "grids": Knob(with_smaller_grids, frozenset({"select", "policy step", "decode"})),
    "quantisation": Knob(with_quantisation, frozenset({"select", "policy step", "decode"})),
    "chips": Knob(with_more_chips, frozenset({"select", "policy step", "decode"})),
}
"""In the order of `out_of_memory.SAVINGS`."""


def advice(setting: Setting, costs: list[Cost], log: Callable[[str], None]) -> str:
    """The first knob, or else combination of knobs, with which every program fits; "" if none.

    Each is tried by compiling the programs that did not fit.
    """
    too_large = {cost.name for cost in costs if not cost.fits}

    def fits(changes: list[str], changed: Setting) -> bool:
        found = list(changed.costs(too_large))
        worst = max(found, key=lambda cost: cost.peak)
        log(f"  with {', '.join(changes)}: {worst.name} {in_gib(worst.peak)}")
        return all(cost.fits for cost in found)

    for knob in KNOBS.values():
        change = knob.apply(setting) if too_large <= knob.helps else None
        if change is not None and fits([change[0]], change[1]):
            return change[0]
    changes, combined = [], setting
    for knob in KNOBS.values():
        change = knob.apply(combined) if too_large & knob.helps else None
        if change is not None:
            changes, combined = [*changes, change[0]], change[1]
            if len(changes) > 1 and fits(changes, combined):
                return ", ".join(changes)
    return ""
