"""A config on the chips of a topology, opened without a TPU."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Collection, Iterator

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from alol_jax.checks import check
from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.objectives.registry import Objective, get_objective
from alol_jax.plan.chips import Slice
from alol_jax.plan.costs import Cost, cost_of
from alol_jax.plan.data import Epoch, epoch_of
from alol_jax.plan.programs import NAMES, programs_of
from alol_jax.tasks.registry import get_task
from alol_jax.text.packing import Lengths

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU to query
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # and none to lock
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A config on the first ``chips`` chips of a topology, or on all chips of several such slices.

    ``lengths`` are those of the data, if it was read.
    """

    config: ConfigDict
    topology: Slice
    chips: int
    lengths: Lengths | None = None
    slices: int = 1

    def open(self) -> LanguageModel:
        """Open the model on the mesh of these chips.

        Raises:
            UserError: the topology has fewer chips, or the config cannot be sharded over them.
        """
        where, whole = self.topology, self.topology.chips * self.slices
        if not 0 < self.chips <= whole or (self.slices > 1 and self.chips != whole):
            of = where.name if self.slices == 1 else f"{self.slices} × {where.name}, used whole,"
            raise UserError(f"--chips={self.chips}: {of} has {whole} chips")
        settings = where.settings | ({"num_slices": self.slices} if self.slices > 1 else {})
        try:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=where.name, **settings
            )
        except jax.errors.JaxRuntimeError as error:
            usual = ", ".join(f"{where.kind}:{shape}" for shape in where.chip.slices)
            raise UserError(
                f"--topology={where.name} is not a topology of libtpu; there are {usual}"
            ) from error
        mesh = make_mesh(**self.config.mesh, devices=described.devices[: self.chips])
        task = get_task(self.config.task)
        lm = open_language_model(self.config.model, mesh).for_template(task.template)
        check(self.config, task, self.objective, lm)
        return lm

    @property
    def objective(self) -> Objective:
        """The objective of the config."""
        return get_objective(self.config.objective.name)

    @functools.cached_property
    def epoch(self) -> Epoch | None:
        """What the data says about a step, if it was read."""
        if self.lengths is None:
            return None
        return epoch_of(self.open(), self.config, self.lengths, self.topology.chip.usable)

    def costs(self, names: Collection[str] = NAMES) -> Iterator[Cost]:
        """Yield the cost of each program of the config that is in ``names``."""
        lm = self.open()
        grid, room = self.epoch and self.epoch.shape, self.topology.chip.usable
        programs = programs_of(lm, self.config, self.objective, room, grid)
        for name, build in programs.items():
            if name in names:
                yield cost_of(build(), self.topology.chip, self.chips)


def prepare() -> None:
    """Set up libtpu to compile without a TPU.

    Raises:
        UserError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plan compiles with libtpu: pip install -r requirements-plan.txt")
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
