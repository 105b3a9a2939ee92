"""Saving and restoring arrays. The only module that imports orbax."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from alol_jax import paths
from alol_jax.devices import processes
from alol_jax.errors import UserError
from alol_jax.paths import AnyPath
from alol_jax.types import Params


@contextlib.contextmanager
def _writing(folder: AnyPath) -> Iterator[None]:
    """Turn orbax's errors for a full or read-only disk, or of a bucket, into a UserError.

    Orbax logs such an error, then raises a ValueError whose text contains the system's error code.
    """
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        with paths.asking(folder):
            yield
    except ValueError as error:
        if "os_error_code" not in str(error):
            raise
        raise UserError(f"{folder} cannot be written: {error}") from error
    finally:
        logging.set_verbosity(before)


def _place(folder: AnyPath) -> AnyPath:
    """Return the folder as orbax wants it."""
    return folder if paths.is_bucket(folder) else folder.absolute()


def save_params(folder: AnyPath, params: Params) -> None:
    """Write a flat dict of arrays to ``folder``, which must not exist.

    Raises:
        UserError: the disk is full or not writable.
    """
    with _writing(folder), ocp.StandardCheckpointer() as saver:
        saver.save(_place(folder), params)


def load_params(folder: AnyPath) -> Params:
    """Load arrays saved by `save_params`, as numpy arrays on the host."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with paths.asking(folder), ocp.StandardCheckpointer() as loader:
        stored = loader.metadata(_place(folder)).item_metadata.tree
        like = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for path, leaf in stored.items()
        }
        return jax.device_get(loader.restore(_place(folder), like))


def _meet(*, key: str, timeout_ms: int) -> None:
    """Wait until all processes have come to this place of a save.

    A process whose save has failed comes here too, while the others wait in another place: its
    error goes on instead, and ends all of them.
    """
    if (error := sys.exception()) is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class _Manager(ocp.CheckpointManager):
    """A manager that leaves it to the loop when to save.

    Orbax asks JAX's preemption service with the training step. The service has one counter, which
    `processes.StopTogether` counts up, and must not be asked with another one.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one training stage: the latest, to resume from, and the best, to return.

    A checkpoint is a training state and a small JSON record. It is copied to the host when `save`
    returns, and written while training goes on. An interrupted save leaves no checkpoint behind,
    and an older one is deleted only when the newer one is complete.
    """

    def __init__(self, folder: AnyPath):
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(barrier_sync_fn=_meet),
        )
        self._folder = folder
        self._manager = _Manager(_place(folder), options=options)
        self._kept: set[int | None] | None = None  # once the save in progress is complete

    def latest(self) -> int | None:
        """Return the last saved step, or None."""
        return processes.from_first("the last checkpoint", self._manager.latest_step)

    def save(self, step: int, state: Any, record: dict[str, Any], *, best: int | None) -> None:
        """Save ``state`` and ``record``; keep only this checkpoint and that of step ``best``.

        Raises:
            UserError: the disk is full or not writable, in this save or the one before; earlier
                checkpoints are kept.
        """
        self.wait()
        if step not in self._manager.all_steps():
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            )
            with _writing(self._folder):
                self._manager.save(step, args=items, force=True)
        self._kept = {step, best}

    def wait(self) -> None:
        """Wait until the last save is complete, then delete what it makes superfluous.

        Raises:
            UserError: the disk is full or not writable.
        """
        kept, self._kept = self._kept, None
        if kept is None:
            return
        with _writing(self._folder):
            self._manager.wait_until_finished()
        for old in self._manager.all_steps():
            if old not in kept:
                self._manager.delete(old)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Restore the state of ``step`` in the dtypes and shardings of ``like``, and its record."""
        self.wait()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
        )
        with paths.asking(self._folder):
            restored = self._manager.restore(step, args=items)
        return restored["state"], restored["record"]

    def close(self) -> None:
        """Wait for the last save, and release the manager's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
