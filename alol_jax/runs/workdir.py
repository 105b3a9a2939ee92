"""A run's folder: load a finished stage, or compute and save it atomically; stale is an error.

``<nn>_<stage>/`` holds a result, ``record.json`` (the stage's inputs, spelled out: they decide
whether the result still counts) and ``config.json`` (the whole config that it was made with). While
a stage runs, its folder is called ``<nn>_<stage>.partial``; what it keeps there to go on after an
interruption survives, and the rename at the end makes the result appear at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import inspect
import json
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from ml_collections import ConfigDict

from alol_jax.runs.artifacts import load_result, save_result
from alol_jax.types import Finished, Interrupted, StageContext, UserError

FORMAT = 2  # of the folder; a stage made by another format is stale


class Run:
    """One workdir and what may happen in it.

    Attributes:
        folder: the workdir; made if absent.
        numbers: all stages in order, each with its number; two of one number exclude each other.
        allowed: the stages that may run; the others must have a result.
        redo: compute a stage anew where its inputs changed, instead of stopping.
        config: the whole config, to name the fields that differ.
        shared: a folder where the stages ``together`` lie, for several runs; the workdir gets links
            to them.
    """

    def __init__(
        self,
        folder: Path,
        numbers: Mapping[str, int],
        config: ConfigDict,
        *,
        allowed: Collection[str],
        redo: bool,
        stopping: Callable[[], bool],
        say: Callable[[str], None],
        shared: Path | None = None,
        together: Collection[str] = (),
    ):
        self.folder, self.numbers, self.config = folder, dict(numbers), config
        self.allowed, self.redo, self._stopping, self._say = allowed, redo, stopping, say
        self._made: list[tuple[Any, str]] = []  # results of this run and their fingerprints
        self.shared, self.together = shared, frozenset(together)
        folder.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str, fn: Callable[..., Any], *inputs: Any) -> Any:
        """The result of ``fn(*inputs, context=…)``, loaded if the same inputs made it before.

        Inputs are config sections, plain values, results of earlier stages, and things that carry a
        ``fingerprint``; a stage sees nothing else, so they are all that its result depends on. A
        named tuple counts as its fields. The type of the result is the annotation of ``fn``.

        Raises:
            UserError: a stored result was made from other inputs, or the stage may not run.
        """
        labels = [p for p in inspect.signature(fn).parameters if p != "context"]
        described = {
            self._label(name, part): self._describe(part)
            for label, value in zip(labels, inputs, strict=True)
            for name, part in _parts(label, value).items()
        }
        record = {"format": FORMAT, "stage": name, "inputs": described}
        final = self._place(name)
        result_type = get_type_hints(fn)["return"]
        if self._is_current(final, record):
            result = load_result(final, result_type)
            self._say(f"[{name}] done before")
        else:
            self._check_allowed(name, final)
            result = self._compute(final, record, result_type, functools.partial(fn, *inputs))
        self._made.append((result, _digest(record)))
        self._link(final, record)
        return result

    def skip(self, name: str, reason: str) -> None:
        """Says why a stage is not needed."""
        self._say(f"[{name}] not needed: {reason}")

    def _place(self, name: str) -> Path:
        """Where the result of a stage lies."""
        folder = self.shared if name in self.together else self.folder
        return folder / f"{self.numbers[name]:02d}_{name}"

    def _link(self, final: Path, record: dict[str, Any]) -> None:
        """A shared result can be found in the workdir too, where nothing else lies in its place."""
        link = self.folder / final.name
        if final.parent == self.folder or self._is_current(link, record):
            return
        if link.is_symlink():
            link.unlink()  # it leads nowhere, or to what other runs shared
        elif link.exists():
            shutil.rmtree(link)
        link.symlink_to(os.path.relpath(final, self.folder), target_is_directory=True)

    def _compute(self, final, record, result_type, fn):
        if self._stopping():
            raise Interrupted(f"before stage {record['stage']}")
        partial = final.with_name(final.name + ".partial")
        if not self._is_current(partial, record) and partial.exists():
            shutil.rmtree(partial)  # what other inputs began
        partial.mkdir(parents=True, exist_ok=True)
        _write_json(partial / "record.json", record)
        _write_json(partial / "config.json", json.loads(self.config.to_json()))
        name = record["stage"]
        self._say(f"[{name}] running")
        context = StageContext(
            folder=partial,
            stopping=self._stopping,
            say=lambda line: self._say(f"[{name}] {line}"),
            tensorboard=self.config.tensorboard,
        )
        began = time.monotonic()
        result = fn(context=context)
        save_result(partial, result)
        if final.is_symlink():
            final.unlink()  # what it points at belongs to other runs too
        elif final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        shutil.rmtree(final / "checkpoints", ignore_errors=True)  # the result stands
        self._say(f"[{name}] took {time.monotonic() - began:.1f} s")
        return load_result(final, result_type)

    def _is_current(self, folder: Path, record: dict[str, Any]) -> bool:
        """Was ``folder`` made from these inputs? If from others: an error, unless with redo."""
        if not folder.exists():
            return False
        stored = _read_json(folder / "record.json")
        if stored == json.loads(json.dumps(record)):
            return True
        contents = {item.name for item in folder.iterdir()}
        begun = stored is not None and bool(contents - {"record.json", "config.json"})
        if begun and not self.redo:
            found = first_difference(stored, record)
            raise UserError(
                f"{folder} was made with {found.field} = {found.one}, this run has {found.other}; "
                "use another --workdir, or --redo to compute it anew"
            )
        return False

    def _check_allowed(self, name: str, final: Path) -> None:
        if name not in self.allowed:
            later = {n for n, number in self.numbers.items() if number >= self.numbers[name]}
            if not later & set(self.allowed):
                raise Finished(f"done before {name}, as --stages says")
            raise UserError(
                f"stage {name} has no result in {final.parent} and --stages does not let it run: "
                f"add {name} to --stages"
            )

    def _label(self, label: str, value: Any) -> str:
        """A config section is called by its place in the config."""
        for key, section in self.config.items():
            if section is value and isinstance(value, ConfigDict):
                return f"config.{key}"
        plain = isinstance(value, (str, int, float))
        return f"config.{label}" if plain and dict(self.config).get(label) == value else label

    def _describe(self, value: Any) -> Any:
        """An input as JSON: what it says, or the fingerprint of what it is."""
        for result, fingerprint in self._made:
            if result is value and value is not None:
                return fingerprint
        if isinstance(value, ConfigDict):
            return json.loads(value.to_json())
        if hasattr(value, "fingerprint"):
            return self._describe(value.fingerprint)
        if isinstance(value, Path):
            return {"file": value.name, "content": _content(value)}
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


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage, for who comes after the run.

    Attributes:
        folder: where its result lies.
        record: its inputs, spelled out.
        fingerprint: by which later stages know its result.
    """

    folder: Path
    record: dict[str, Any]
    fingerprint: str

    def config(self) -> ConfigDict:
        """The whole config that the stage was made with.

        Raises:
            UserError: it was made before stages kept it.
        """
        file = self.folder / "config.json"
        stored = _read_json(file)
        if stored is None:
            raise UserError(f"{file} is missing: delete {self.folder} and run again")
        return ConfigDict({key: _with_tuples(value) for key, value in stored.items()})


def finished_stage(workdir: Path, name: str) -> Stage | None:
    """The stage called ``name`` in a workdir; None where it has no result."""
    for folder in sorted(workdir.glob(f"[0-9][0-9]_{name}")):
        record = _read_json(folder / "record.json")
        if record is not None:
            return Stage(folder, record, _digest(record))
    return None


def _with_tuples(value: Any) -> Any:
    """What JSON made lists of, as a config has it."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _content(file: Path) -> str:
    """A hash of the file's bytes; a file that is not there is for its reader to refuse."""
    if not file.is_file():
        return "absent"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def _parts(label: str, value: Any) -> dict[str, Any]:
    """An input by name: the fields of a named tuple, or the input itself."""
    return value._asdict() if hasattr(value, "_asdict") else {label: value}


def _digest(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
    fresh.replace(path)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


class Difference(NamedTuple):
    """A field of two records, with what the one and the other have there, shortened."""

    field: str
    one: str
    other: str


def first_difference(one: Any, other: Any, where: str = "") -> Difference | None:
    """The first field in which two records differ; None where they say the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key) or (key in one) != (key in other):
                inner = key if where in ("", "inputs", "lm", "scoring") else f"{where}.{key}"
                return first_difference(one.get(key), other.get(key), inner)
    if one == other:
        return None
    return Difference(where, *(textwrap.shorten(json.dumps(value), 100) for value in (one, other)))


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the workdir for this process.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another run is using this workdir") from error
        yield
