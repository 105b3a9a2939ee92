"""The workdir of a run, local or in a bucket: load a finished stage, or compute and save it.

``<nn>_<stage>/`` holds a result, ``record.json`` (the stage's inputs, which decide whether the
result is still valid; a stale result is an error; and the commits that were read of the hub) and
``config.json`` (the whole config of the run). The record is written last, and only with it the
result counts. Until then ``started.json`` holds the inputs, and the folder keeps what the stage
needs to resume. Instead of a result, ``link.json`` can name the folder that holds it, which other
runs share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.devices import processes
from alol_jax.devices.out_of_memory import watching_stage
from alol_jax.errors import Finished, Interrupted, UserError
from alol_jax.paths import AnyPath
from alol_jax.runs.artifacts import load_result, save_result
from alol_jax.runs.records import as_stored, content_of, digest, first_difference
from alol_jax.types import LogOptions, Pace, StageContext, never

FORMAT = 7  # version of the folder layout; results of another version are stale
RECORD, STARTED, CONFIG, LINK = "record.json", "started.json", "config.json", "link.json"
CHECKPOINTS = "checkpoints"


class Run:
    """A workdir and the rules for running stages in it.

    Attributes:
        folder: the workdir; created if it does not exist.
        numbers: all stages in order, with the numbers of their folders.
        config: the whole config, saved with each stage and used to name its sections.
        allowed: the stages that may run; all others must already have a result.
        redo: recompute a stage whose inputs changed, instead of stopping with an error.
        pace: is told how fast a fit goes, with the name of its stage.
        shared: a folder for the results of ``shared_stages``, used by several runs; the workdir
            links to them.
    """

    def __init__(
        self,
        folder: AnyPath,
        numbers: Mapping[str, int],
        config: ConfigDict,
        *,
        allowed: Collection[str],
        redo: bool,
        stopping: Callable[[], bool],
        say: Callable[[str], None],
        shared: AnyPath | None = None,
        shared_stages: Collection[str] = (),
    ):
        self.folder, self.numbers, self.config = folder, dict(numbers), config
        self.allowed, self.redo, self._stopping, self._say = allowed, redo, stopping, say
        self.pace: Callable[[str, Pace], None] = lambda stage, pace: None
        self._made: list[tuple[Any, str]] = []  # results so far and their fingerprints
        self.shared, self.shared_stages = shared, frozenset(shared_stages)
        paths.make_folder(folder)

    def stage(
        self,
        name: str,
        fn: Callable[..., Any],
        *inputs: Any,
        once: bool = False,
        quiet_for: float = 0.0,
    ) -> Any:
        """Return ``fn(*inputs, context=…)``, loaded from disk if made from the same inputs.

        Inputs are config sections, plain values, results of earlier stages, and objects with a
        ``fingerprint``. The result must depend on nothing else. A named tuple is recorded field by
        field. The result type is the return annotation of ``fn``.

        Args:
            once: of several processes only the first one runs ``fn``, which uses no devices.
            quiet_for: seconds before it is said that the stage is running, so that an error of the
                first seconds stands alone.

        Raises:
            UserError: the stored result was made from other inputs, another process has other
                inputs, or the stage may not run.
        """
        labels = [p for p in inspect.signature(fn).parameters if p != "context"]
        parts = {
            name: part
            for label, value in zip(labels, inputs, strict=True)
            for name, part in _parts(label, value).items()
        }
        described = {self._label(name, part): self._describe(part) for name, part in parts.items()}
        record = {"format": FORMAT, "stage": name, "inputs": described}
        final = self._place(name)
        result_type = get_type_hints(fn)["return"]
        check_same(name, record)
        if processes.from_first(name, lambda: self._is_finished(final, record)):
            self._say(f"[{name}] already done")
        else:
            self._check_allowed(name, final)
            commits = _commits(parts.values())
            self._compute(
                final,
                record,
                functools.partial(fn, *inputs),
                commits,
                once=once,
                quiet_for=quiet_for,
            )
        result = load_result(_linked(final), result_type)
        self._made.append((result, digest(record)))
        processes.from_first(name, lambda: self._link(final, record))
        return result

    def skip(self, name: str, reason: str) -> None:
        """Report why a stage is not needed."""
        self._say(f"[{name}] not needed: {reason}")

    def _place(self, name: str) -> AnyPath:
        """Return the folder of a stage's result."""
        folder = self.shared if name in self.shared_stages else self.folder
        return folder / f"{self.numbers[name]:02d}_{name}"

    def _link(self, final: AnyPath, record: dict[str, Any]) -> None:
        """Link a shared result into the workdir, unless a current result is already there."""
        folder = self.folder / final.name
        if final.parent == self.folder or self._is_finished(folder, record):
            return
        _drop(folder)  # unfinished, or a link to another shared result
        paths.make_folder(folder)
        _write_json(folder / LINK, {"folder": os.path.relpath(final, folder)})

    def _compute(
        self,
        folder: AnyPath,
        record: Any,
        fn: Callable[..., Any],
        commits: dict[str, str],
        *,
        once: bool,
        quiet_for: float,
    ) -> None:
        """Run a stage and save its result."""
        name = record["stage"]
        if self._stopping():
            raise Interrupted(f"before stage {name}")
        processes.from_first(name, lambda: self._begin(folder, record))
        alone = once and processes.count() > 1
        context = StageContext(
            folder=folder,
            stopping=never if alone else self._stopping,
            say=lambda line: self._say(f"[{name}] {line}"),
            log=log_options(self.config),
            pace=functools.partial(self.pace, name),
        )

        def compute() -> dict[str, str]:
            with watching_stage(name):
                result = fn(context=context)
                save_result(folder, result)
            return commits | _commits([result])

        began = time.monotonic()
        with self._announced(name, quiet_for):
            read = processes.from_first(name, compute) if once else compute()
        record = record | ({"commits": read} if read else {})
        processes.from_first(name, lambda: _publish(folder, record))
        self._say(f"[{name}] took {time.monotonic() - began:.1f} s")

    @contextlib.contextmanager
    def _announced(self, name: str, quiet_for: float) -> Iterator[None]:
        """Say that a stage is running, after some seconds of it."""
        if not quiet_for:
            self._say(f"[{name}] running")
            yield
            return
        timer = threading.Timer(quiet_for, self._say, [f"[{name}] running"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _begin(self, folder: AnyPath, record: dict[str, Any]) -> None:
        """Prepare the folder of a stage: its own work goes on, all else is dropped."""
        started = _read_json(folder / STARTED)
        if started is not None and set(paths.names(folder)) - {STARTED, CONFIG}:
            self._refuse_other(folder, started, record)
        if started != as_stored(record):
            _drop(folder)
            paths.make_folder(folder)
            _write_json(folder / STARTED, record)
        _write_json(folder / CONFIG, json.loads(self.config.to_json()))

    def _is_finished(self, folder: AnyPath, record: dict[str, Any]) -> bool:
        """Whether the folder holds, or links to, the result made from these inputs."""
        stored = _read_record(_linked(folder))
        if stored is not None:
            self._refuse_other(folder, stored, record)
        return stored == as_stored(record)

    def _refuse_other(self, folder: AnyPath, stored: Any, record: dict[str, Any]) -> None:
        """Raise UserError if the folder has work from other inputs, unless ``redo`` is set."""
        if stored != as_stored(record) and not self.redo:
            change = first_difference(stored, record)
            raise UserError(
                f"{folder} was made with {change.field} = {change.one}, this run has "
                f"{change.other}; use another --workdir, or --redo to recompute it"
            )

    def _check_allowed(self, name: str, final: AnyPath) -> None:
        if name not in self.allowed:
            order = [*self.numbers]
            if not {*order[order.index(name) :]} & {*self.allowed}:
                raise Finished(f"finished before {name}, which --stages leaves out")
            raise UserError(
                f"stage {name} has no result in {final.parent} and --stages leaves it out: "
                f"add {name} to --stages"
            )

    def _label(self, label: str, value: Any) -> str:
        """Name a config section by its key in the config, as ``config.<key>``."""
        for key, section in self.config.items():
            if section is value and isinstance(value, ConfigDict):
                return f"config.{key}"
        plain = isinstance(value, (str, int, float))
        return f"config.{label}" if plain and dict(self.config).get(label) == value else label

    def _describe(self, value: Any) -> Any:
        """Describe an input as JSON: its value, or its fingerprint."""
        for result, fingerprint in self._made:
            if result is value and value is not None:
                return fingerprint
        if isinstance(value, ConfigDict):
            return json.loads(value.to_json())
        if hasattr(value, "fingerprint"):
            return self._describe(value.fingerprint)
        if isinstance(value, PurePath):
            return {"file": value.name, "content": content_of(value)}
        if isinstance(value, dict):
            return {name: self._describe(item) for name, item in value.items()}
        if dataclasses.is_dataclass(value):
            return {
                f.name: self._describe(getattr(value, f.name)) for f in dataclasses.fields(value)
            }
        if isinstance(value, (tuple, list)):
            return [self._describe(item) for item in value]
        if callable(value):
            return value.__qualname__
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        raise TypeError(f"a stage cannot take a {type(value).__name__}: it has no fingerprint")


def log_options(config: ConfigDict) -> LogOptions:
    """Return ``config.log``, with the whole config to be shown beside the metrics."""
    return LogOptions(**config.log, config=json.loads(config.to_json()))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage on disk, for programs that read a run afterwards.

    Attributes:
        folder: the folder of the result.
        record: the stage's inputs.
        fingerprint: identifies the result in the records of later stages.
    """

    folder: AnyPath
    record: dict[str, Any]
    fingerprint: str

    def config(self) -> ConfigDict:
        """Return the whole config of the run that made this stage.

        Raises:
            UserError: the stage was made by a version that did not save the config.
        """
        file = self.folder / CONFIG
        stored = _read_json(file)
        if stored is None:
            raise UserError(f"{file} is missing: delete {self.folder} and run again")
        return ConfigDict({key: _with_tuples(value) for key, value in stored.items()})


def finished_stage(workdir: AnyPath, name: str) -> Stage | None:
    """Return the stage ``name`` of a workdir, or None if it has no result."""
    for inside in paths.names(workdir):
        if re.fullmatch(rf"\d\d_{name}", inside):
            folder = _linked(workdir / inside)
            record = _read_record(folder)
            if record is not None:
                return Stage(folder, record, digest(record))
    return None


def _linked(folder: AnyPath) -> AnyPath:
    """Return the folder that holds the result of a stage's folder: itself, or the end of its
    links."""
    link = _read_json(folder / LINK)
    if link is None:
        return folder
    for part in PurePath(link["folder"]).parts:
        folder = folder.parent if part == ".." else folder / part
    return _linked(folder)


def _drop(folder: AnyPath) -> None:
    """Remove a stage's folder; what is left of it if that is interrupted counts as nothing."""
    if paths.is_bucket(folder) or not folder.is_symlink():
        for name in (RECORD, STARTED):
            paths.remove(folder / name)
    paths.remove(folder)


def _publish(folder: AnyPath, record: dict[str, Any]) -> None:
    """Make the saved result of a stage count."""
    _write_json(folder / RECORD, record)
    for name in (STARTED, CHECKPOINTS):  # no longer needed
        paths.remove(folder / name)


def check_same(name: str, record: dict[str, Any]) -> None:
    """Check that all processes run with the same config, or a stage with the same inputs.

    Raises:
        UserError: naming the first process that does not, and the difference.
    """
    records = processes.gather(name, record)
    for number, other in enumerate(records):
        if change := first_difference(records[0], other):
            raise UserError(
                f"{processes.named(number)} has {change.field} = {change.other}, process 0 has "
                f"{change.one}: all processes need the same config, data and models"
            )


def _with_tuples(value: Any) -> Any:
    """Convert the lists of a config read from JSON back to tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _parts(label: str, value: Any) -> dict[str, Any]:
    """Return the named parts of an input: the fields of a named tuple, or the input itself."""
    return value._asdict() if hasattr(value, "_asdict") else {label: value}


def _write_json(path: AnyPath, value: Any) -> None:
    paths.write_text(path, json.dumps(value, indent=1, sort_keys=True))


def _read_record(folder: AnyPath) -> Any:
    """Return what the result in a folder was made from; None if there is no result.

    Commits are left out: the hub gives new ones for files that are the same.
    """
    record = _read_json(folder / RECORD)
    return record and {key: value for key, value in record.items() if key != "commits"}


def _commits(values: Iterable[Any]) -> dict[str, str]:
    """Return the commits that were read of repositories on the hub, by the names in the config."""
    each = (dict(getattr(value, "commits", ())) for value in values)
    return {name: commit for found in each for name, commit in found.items()}


def _read_json(path: AnyPath) -> Any:
    try:
        return json.loads(paths.read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
