"""Saving and restoring arrays: the only door to orbax."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from alol_jax.types import Params, UserError


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A full disk reaches us as a ValueError with the system's code in its text, after a log."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    except ValueError as error:
        if "os_error_code" not in str(error):
            raise
        raise UserError(f"{folder} cannot be written: {error}") from error
    finally:
        logging.set_verbosity(before)


def save_params(folder: Path, params: Params) -> None:
    """Writes a flat dict of arrays to ``folder``, which must not exist.

    Raises:
        UserError: the disk is full or not writable.
    """
    with _writing(folder), ocp.StandardCheckpointer() as saver:
        saver.save(folder.absolute(), params)


def load_params(folder: Path) -> Params:
    """What `save_params` wrote, as numpy arrays on the host; the caller places them."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as loader:
        stored = loader.metadata(folder.absolute()).item_metadata.tree
        like = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for path, leaf in stored.items()
        }
        return jax.device_get(loader.restore(folder.absolute(), like))


class Checkpoints:
    """The checkpoints of one training stage: the latest, to go on from, and the best, to end with.

    A checkpoint is a training state and a small JSON record. Writing is atomic: an interrupted save
    leaves no checkpoint behind.
    """

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """The last saved step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, record: dict[str, Any], *, best: int | None) -> None:
        """Saves ``state`` and ``record``, then drops all but this step and step ``best``.

        Raises:
            UserError: the disk is full or not writable; what was saved before stays.
        """
        if step not in self._manager.all_steps():
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            )
            with _writing(self._folder):
                self._manager.save(step, args=items, force=True)
                self._manager.wait_until_finished()
        for old in self._manager.all_steps():
            if old not in (step, best):
                self._manager.delete(old)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state of ``step``, laid out as ``like`` (dtypes, shardings), and its record."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["record"]

    def close(self) -> None:
        """Releases the manager's threads."""
        self._manager.close()
