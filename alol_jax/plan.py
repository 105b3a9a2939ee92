"""Does it fit, and what will it cost? Asked before the hardware is paid for.

python -m alol_jax.plan --config=configs/quickstart.py --topology=v5e:2x4

Compiles the programs of a config for a TPU on any machine with ``requirements-plan.txt``; nothing
runs and no weights are read.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from jax.experimental import topologies
from ml_collections import ConfigDict, config_flags

from alol_jax.chips import GIB, Slice, read_topology
from alol_jax.command_line import guarded, parse
from alol_jax.costs import Cost, cost_of
from alol_jax.language_model import LanguageModel, open_language_model
from alol_jax.objectives import get_objective
from alol_jax.programs import programs_of
from alol_jax.progress import say
from alol_jax.sharding import make_mesh
from alol_jax.types import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with :argument.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chip and shape, like v5e:2x4 or v5p:2x2x1.")
_CHIPS = flags.DEFINE_integer("chips", 0, "The first so many chips of the topology; 0 = all.")
_BATCH = flags.DEFINE_integer("batch", 0, "Rows of every batch; 0 = as the config says.")
_JSON = flags.DEFINE_bool("json", False, "One JSON object instead of a table.")

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU to ask
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nor one to lock
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
BATCHES = ("policy", "select", "decode")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is compiled: a config on so many chips of a topology."""

    config: ConfigDict
    where: Slice
    chips: int

    def open(self) -> LanguageModel:
        """The model on the mesh of those chips.

        Raises:
            UserError: the topology has fewer chips, or the config cannot be cut over them.
        """
        if not 0 < self.chips <= self.where.chips:
            raise UserError(f"--chips={self.chips}: {self.where.name} has {self.where.chips} chips")
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=self.where.name, **self.where.chip.settings
        )
        devices = described.devices[: self.chips]
        mesh = make_mesh(**self.config.mesh, devices=devices)
        rows = mesh.shape["data"] * mesh.shape["fsdp"]
        for section in BATCHES:
            size = self.config[section].batch_size
            if size % rows:
                raise UserError(
                    f"config.{section}.batch_size={size} must be a multiple of data · fsdp = {rows}"
                )
        return open_language_model(self.config.model, mesh)

    def costs(self, names: Collection[str] = ()) -> Iterator[Cost]:
        """The cost of each program (of those in ``names``, if any are given)."""
        lm = self.open()
        programs = programs_of(lm, self.config, get_objective(self.config.objective.name))
        for name, describe in programs.items():
            if not names or name in names:
                yield cost_of(describe(), self.where.chip, self.chips)


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
    responses = setting.config.policy.batch_size * setting.config.model.shapes[-1][1]
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
    accumulate = 2 * c.policy.accumulate
    said = ", ".join(f"config.{section}.batch_size={size}" for section, size in sizes.items())
    said += f", config.policy.accumulate={accumulate}"
    return said, _changed(setting, policy__accumulate=accumulate, **values)


def with_quantisation(setting: Setting) -> tuple[str, Setting] | None:
    """The frozen base in NF4."""
    model = setting.config.model
    if model.quantisation != "none" or model.lora.rank == 0:
        return None
    return "config.model.quantisation=nf4", _changed(setting, model__quantisation="nf4")


def with_more_chips(setting: Setting) -> tuple[str, Setting] | None:
    """The next larger topology, weights and rows cut over all of it."""
    larger = setting.where.larger
    if larger is None:
        return None
    tensor = setting.config.mesh.tensor
    rows = larger.chips // max(tensor, 1)
    values = {f"{s}__batch_size": -(-setting.config[s].batch_size // rows) * rows for s in BATCHES}
    changed = _changed(setting, mesh__data=1, mesh__fsdp=-1, **values)
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
        tell(f"  with {', '.join(said)}: {worst.name} {_gib(worst.peak)}")
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


def table(costs: list[Cost]) -> str:
    """One line per program, everything per chip; what is not known is "-"."""
    head = (
        "per chip", "weights", "optimizer", "activations", "other", "peak GiB", "TFLOP", "GB moved",
        "GB sent", "seconds", "bound", "compiled in",
    )  # fmt: skip
    rows = [head, *(_line(cost) for cost in costs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _line(cost: Cost) -> tuple[str, ...]:
    sizes, moved, sent = ["-"] * 4, "-", "-"
    if (m := cost.memory) is not None:
        parts = (m.weights, m.optimizer, m.activations, m.batch + m.program)
        sizes = [f"{part / GIB:.2f}" for part in parts]
    if (traffic := cost.traffic) is not None:
        moved, sent = (f"{size / 1e9:.3g}" for size in (traffic.memory, traffic.network))
    return (
        cost.name,
        *sizes,
        f"{cost.peak / GIB:.2f} of {cost.chip.usable / GIB:.2f}",
        f"{cost.flops / 1e12:.3g}",
        moved,
        sent,
        f"{cost.seconds:.3g}" if cost.traffic else f"≥ {cost.seconds:.3g}",
        cost.bound if cost.traffic else "-",
        f"{cost.compile_seconds:.0f} s",
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def verdict(setting: Setting, costs: list[Cost], knob: str) -> str:
    """One line: fits or not, and what helps."""
    worst = max(costs, key=lambda cost: cost.peak)
    room = f"{worst.name} needs {_gib(worst.peak)} of {_gib(worst.chip.usable)} per chip"
    on = f"{setting.chips} × {setting.where.kind} ({setting.where.name})"
    if all(cost.fits for cost in costs):
        return f"fits on {on}: {room}"
    helps = f"fits with {knob}" if knob else "no knob that was tried brings it under"
    return f"does not fit on {on}: {room}; {helps}"


def as_json(setting: Setting, costs: list[Cost], knob: str) -> str:
    """Everything that the table and the verdict say, and the parts of it."""
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
            "times": cost.times,
            "seconds": cost.seconds,
            "bound": cost.bound,
            "compile_seconds": cost.compile_seconds,
        }
        for cost in costs
    ]
    found = {
        "topology": setting.where.name,
        "chips": setting.chips,
        "model": setting.config.model.to_dict(),
        "mesh": setting.config.mesh.to_dict(),
        "batch": {section: setting.config[section].batch_size for section in BATCHES},
        "programs": programs,
        "fits": all(cost.fits for cost in costs),
        "knob": knob,
        "verdict": verdict(setting, costs, knob),
    }
    return json.dumps(found, indent=1)


def prepare() -> None:
    """Makes libtpu compile without a TPU.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plan compiles with libtpu: pip install -r requirements-plan.txt")
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}: settings go as --config.x.y=value")
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise UserError("--config and --topology are needed, like --topology=v5e:2x4")
    where = read_topology(_TOPOLOGY.value)
    prepare()
    logging.set_verbosity(logging.WARNING)
    config = ConfigDict(_CONFIG.value.to_dict())
    if _BATCH.value:
        for section in BATCHES:
            config[section].batch_size = _BATCH.value
    setting = Setting(config, where, _CHIPS.value or where.chips)
    tell = (lambda line: None) if _JSON.value else say
    for note in setting.open().notes:
        tell(note)
    costs = []
    for cost in setting.costs():
        tell(f"  {cost.name}: {_gib(cost.peak)}, compiled in {cost.compile_seconds:.0f} s")
        costs.append(cost)
    knob = "" if all(cost.fits for cost in costs) else advice(setting, costs, tell)
    if _JSON.value:
        say(as_json(setting, costs, knob))
    else:
        say(table(costs))
        say(verdict(setting, costs, knob))


def entry() -> None:
    """Runs `main`; what the user can mend becomes one line on stderr and exit code 2."""
    sys.exit(guarded(lambda: app.run(main, flags_parser=parse)))


if __name__ == "__main__":
    entry()
