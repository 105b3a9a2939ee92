"""Changes that make a program fit in memory, each tried by compiling again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alol_jax.objectives.registry import num_responses
from alol_jax.plan.chips import in_gib
from alol_jax.plan.costs import Cost
from alol_jax.plan.setting import BATCHES, Setting


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
    responses = setting.config.policy.batch_size * count * setting.config.model.shapes[-1][1]
    chunk = min(setting.config.model.logprob_chunk, responses) // 8
    if chunk < 64:
        return None
    return f"config.model.logprob_chunk={chunk}", _changed(setting, model__logprob_chunk=chunk)


def with_smaller_batch(setting: Setting) -> tuple[str, Setting] | None:
    """Halve the micro-batches, if the mesh can still divide them, with as many rows per step."""
    c = setting.config
    mesh = setting.open().mesh
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {section: c[section].batch_size // 2 for section in BATCHES}
    if any(size == 0 or size % shards for size in sizes.values()):
        return None
    values = {f"{section}__batch_size": size for section, size in sizes.items()}
    for section in ("reference", "policy"):
        values[f"{section}__accumulate"] = 2 * c[section].accumulate
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
    larger = topology if setting.chips < topology.chips else topology.larger
    if larger is None:
        return None
    tensor = max(setting.config.mesh.tensor, 1)
    rows = larger.chips // tensor
    values = {f"{s}__batch_size": -(-setting.config[s].batch_size // rows) * rows for s in BATCHES}
    changed = _changed(setting, mesh__data=1, mesh__fsdp=-1, mesh__tensor=tensor, **values)
    change = f"--topology={larger.name} with config.mesh data=1, fsdp=-1"
    sizes = {s: changed.config[s].batch_size for s in BATCHES}
    if sizes != {s: setting.config[s].batch_size for s in BATCHES}:
        change += " and batches of " + " / ".join(str(size) for size in sizes.values())
    return change, dataclasses.replace(changed, topology=larger, chips=larger.chips)


class Knob(NamedTuple):
    """A change that saves memory, and the programs in which it does."""

    # Returns the change in words and the new setting; None if it is not possible.
    apply: Callable[[Setting], tuple[str, Setting] | None]
    helps: frozenset[str]


KNOBS: dict[str, Knob] = {
    "remat": Knob(with_remat, frozenset({"policy step"})),
    "chunk": Knob(with_smaller_chunk, frozenset({"select", "policy step"})),
    "batch": Knob(with_smaller_batch, frozenset({"select", "policy step", "decode"})),
    "quantisation": Knob(with_quantisation, frozenset({"select", "policy step", "decode"})),
    "chips": Knob(with_more_chips, frozenset({"select", "policy step", "decode"})),
}
"""From cheapest to most expensive."""


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
