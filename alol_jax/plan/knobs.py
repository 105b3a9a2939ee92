"""What brings a program under: changes of a setting, each tried by compiling again."""

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
    """The setting with other config values; a key's dots are written as two underscores."""
    config = ConfigDict(setting.config.to_dict())
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in values.items()})
    return dataclasses.replace(setting, config=config)


def with_remat(setting: Setting) -> tuple[str, Setting] | None:
    """Recompute the blocks in the backward pass."""
    if setting.config.model.remat:
        return None
    return "config.model.remat=True", _changed(setting, model__remat=True)


def with_smaller_chunk(setting: Setting) -> tuple[str, Setting] | None:
    """An eighth of the logits at a time."""
    count = num_responses(setting.objective, setting.config.objective)
    responses = setting.config.policy.batch_size * count * setting.config.model.shapes[-1][1]
    chunk = min(setting.config.model.logprob_chunk, responses) // 8
    if chunk < 64:
        return None
    said = f"config.model.logprob_chunk={chunk}"
    return said, _changed(setting, model__logprob_chunk=chunk)


def with_smaller_batch(setting: Setting) -> tuple[str, Setting] | None:
    """Half of the rows at a time, where the mesh can still cut them; as many per step."""
    c = setting.config
    rows = setting.open().mesh
    cut = rows.shape["data"] * rows.shape["fsdp"]
    sizes = {section: c[section].batch_size // 2 for section in BATCHES}
    if any(size == 0 or size % cut for size in sizes.values()):
        return None
    values = {f"{section}__batch_size": size for section, size in sizes.items()}
    for section in ("reference", "policy"):
        values[f"{section}__accumulate"] = 2 * c[section].accumulate
    said = (f"config.{key.replace('__', '.')}={value}" for key, value in values.items())
    return ", ".join(said), _changed(setting, **values)


def with_quantisation(setting: Setting) -> tuple[str, Setting] | None:
    """The frozen base in NF4."""
    model = setting.config.model
    if model.quantisation != "none" or model.lora.rank == 0:
        return None
    return "config.model.quantisation=nf4", _changed(setting, model__quantisation="nf4")


def with_more_chips(setting: Setting) -> tuple[str, Setting] | None:
    """All chips of the topology, or the next larger one; weights and rows cut over all of it."""
    larger = setting.where if setting.chips < setting.where.chips else setting.where.larger
    if larger is None:
        return None
    tensor = max(setting.config.mesh.tensor, 1)
    rows = larger.chips // tensor
    values = {f"{s}__batch_size": -(-setting.config[s].batch_size // rows) * rows for s in BATCHES}
    changed = _changed(setting, mesh__data=1, mesh__fsdp=-1, mesh__tensor=tensor, **values)
    said = f"--topology={larger.name} with config.mesh data=1, fsdp=-1"
    grown = {s: changed.config[s].batch_size for s in BATCHES}
    if grown != {s: setting.config[s].batch_size for s in BATCHES}:
        said += " and batches of " + " / ".join(str(size) for size in grown.values())
    return said, dataclasses.replace(changed, where=larger, chips=larger.chips)


class Knob(NamedTuple):
    """A change that can bring a program under, and the programs that it can help."""

    turn: Callable[[Setting], tuple[str, Setting] | None]  # the change in words; None: done already
    helps: frozenset[str]


KNOBS: dict[str, Knob] = {
    "remat": Knob(with_remat, frozenset({"policy step"})),
    "chunk": Knob(with_smaller_chunk, frozenset({"select", "policy step"})),
    "batch": Knob(with_smaller_batch, frozenset({"select", "policy step", "decode"})),
    "quantisation": Knob(with_quantisation, frozenset({"select", "policy step", "decode"})),
    "chips": Knob(with_more_chips, frozenset({"select", "policy step", "decode"})),
}
"""From cheap to dear."""


def advice(setting: Setting, costs: list[Cost], tell: Callable[[str], None]) -> str:
    """The first knob, or else the first ones together, that bring every program under; or "".

    Each is tried by compiling the programs that did not fit.
    """
    tight = {cost.name for cost in costs if not cost.fits}

    def fits(said: list[str], turned: Setting) -> bool:
        found = list(turned.costs(tight))
        worst = max(found, key=lambda cost: cost.peak)
        tell(f"  with {', '.join(said)}: {worst.name} {in_gib(worst.peak)}")
        return all(cost.fits for cost in found)

    for knob in KNOBS.values():
        turned = knob.turn(setting) if tight <= knob.helps else None
        if turned is not None and fits([turned[0]], turned[1]):
            return turned[0]
    said, together = [], setting
    for knob in KNOBS.values():
        turned = knob.turn(together) if tight & knob.helps else None
        if turned is not None:
            said, together = [*said, turned[0]], turned[1]
            if len(said) > 1 and fits(said, together):
                return ", ".join(said)
    return ""
