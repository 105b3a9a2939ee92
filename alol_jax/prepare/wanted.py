"""What a config names: a list of things that are here, can be brought, or must be fetched by hand.

Each has ``title``, ``there()``, ``about()`` and ``bring(around)``, which raises `UserError`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.hf_reader import (
    MODEL_FILES,
    HubFiles,
    OnHub,
    copied,
    download,
    on_hub,
)
from alol_jax.models.files.peft_adapter import ADAPTER_FILES
from alol_jax.models.files.peft_config import read_fields
from alol_jax.models.language_model import RANDOM
from alol_jax.paths import AnyPath, exists, is_bucket, path_of, with_home
from alol_jax.prepare import hub
from alol_jax.prepare.bring import Surroundings, bring
from alol_jax.prepare.places import HUB_DATA, Place, Places, find
from alol_jax.prepare.units import in_bytes
from alol_jax.rewards.distilled import DESCRIPTION
from alol_jax.tasks import hub_source, sources, tfds_source
from alol_jax.tasks.registry import get_task

HUB = "https://huggingface.co/"
# owner/name:part:split@revision, with a split or a revision
_SPLIT = re.compile(r"[\w.-]+/[\w.-]+((:[\w./-]+)?:\w+(@[\w./-]+)?|@[\w./-]+)")


class Item(Protocol):
    """Something that a config names."""

    title: str

    def there(self) -> bool: ...

    def about(self) -> str: ...

    def bring(self, around: Surroundings) -> None: ...


@dataclasses.dataclass(frozen=True)
class Published:
    """Local paths that one published place has."""

    title: str
    paths: tuple[Path, ...]
    name: str
    place: Place

    def there(self) -> bool:
        return all(path.exists() for path in self.paths)

    def about(self) -> str:
        place = self.place
        source = f"from {' or '.join(place.addresses)}" if place.addresses else place.manual
        seen = f"address looked up {place.looked_up}" if place.looked_up else ""
        told = (_size(place.size), source, f"licence: {place.licence}", seen, place.note)
        return ", ".join(filter(None, told))

    def bring(self, around: Surroundings) -> None:
        bring(self.name, self.place, around)
        if not self.there():
            raise UserError(f"{self.title}: not complete after unpacking {self.name}")


@dataclasses.dataclass(frozen=True)
class Own:
    """A path that no published place has: it is there, or the user must put it there."""

    title: str
    path: AnyPath

    def there(self) -> bool:
        return exists(self.path)

    def about(self) -> str:
        local = not is_bucket(self.path) and self.path.is_file()
        return _size(self.path.stat().st_size) if local else "your own"

    def bring(self, around: Surroundings) -> None:
        raise UserError(
            f"{self.title}: no such file, and no published place of it is known: put it there, or "
            "name another one in the config"
        )


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A data set that tensorflow-datasets downloads and prepares."""

    title: str
    name: str

    def there(self) -> bool:
        return tfds_source.is_prepared(self.name)

    def about(self) -> str:
        return "size not known, by tensorflow-datasets"

    def bring(self, around: Surroundings) -> None:
        sources.on_disk(self.name)


@dataclasses.dataclass(frozen=True)
class HubData:
    """A data set of the hub, or one split of it."""

    title: str
    name: str

    def there(self) -> bool:
        return hub_source.is_cached(self.name)

    def about(self) -> str:
        dataset = hub_source.parse(self.name).dataset
        return f"size not known, from {HUB}datasets/{dataset}, {_licence(HUB_DATA.get(dataset))}"

    def bring(self, around: Surroundings) -> None:
        hub_source.cache(self.name)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, an adapter or a reward model, as a run opens it.

    A model that is here but cannot be opened is not there: what opening it says is missing.
    """

    title: str
    path: str
    adapter: bool = False

    def there(self) -> bool:
        try:
            self._open()
        except UserError:
            return False
        return True

    def about(self) -> str:
        if (model := self._on_hub()) is None:
            return "your own"
        size, licence = hub.facts(model, self._files())
        return f"{_size(size)}, from {HUB}{model.name}, {_licence(licence)}"

    def bring(self, around: Surroundings) -> None:
        model = self._on_hub()
        if model and hub.cached(model, self._files()) is None:
            around.say(f"downloading {HUB}{model.name}")
            download(model, self._files())
        self._open()

    def _on_hub(self) -> OnHub | None:
        return None if Path(self.path).expanduser().exists() else on_hub(self.path)

    def _files(self) -> HubFiles:
        return ADAPTER_FILES if self.adapter else MODEL_FILES

    def _open(self) -> None:
        """Open it without reading weights.

        Raises:
            UserError: it is not here, or a run cannot read it.
        """
        folder: AnyPath | None = path_of(self.path)
        model = self._on_hub()
        if model:
            folder = hub.cached(model, self._files())
            if folder is None:
                raise UserError(f"{self.title}: not here")
        if not self.path:
            raise UserError(f"{self.title}: the path is empty: name a model in the config")
        if self.adapter:
            read_fields(copied(self.path, ADAPTER_FILES) if is_bucket(folder) else folder)
        elif not exists(folder / DESCRIPTION):  # made by distill_reward
            open_checkpoint(str(folder) if model else self.path)


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """A model directory that a published place has."""

    published: Published
    model: Model

    @property
    def title(self) -> str:
        return self.model.title

    def there(self) -> bool:
        return self.published.there() and self.model.there()

    def about(self) -> str:
        return self.published.about()

    def bring(self, around: Surroundings) -> None:
        if not self.published.there():
            self.published.bring(around)
        self.model.bring(around)


def wanted(config: ConfigDict, places: Places) -> list[Item]:
    """List what a config names, each thing once.

    Raises:
        UserError: the config names no task, or names its data in a wrong way.
    """
    task = with_home(config.task)
    texts = _texts(task)
    if any(text.startswith(tfds_source.PREFIX) or is_bucket(text) for text in texts):
        paths = [text for text in texts if sources.is_file(text)]  # `files` would download these
    else:
        paths = list(dict.fromkeys(map(str, get_task(task).files(task))))
    items: list[Item] = list(_data(paths, places))
    items += [HubData(f"data set {name}", name) for name in _hub_data(texts, paths)]
    models = [("model", config.model.path, False), ("adapter", config.model.adapter, True)]
    models += [
        (f"reward model {name}", config.reward_models[name].path, False)
        for name in config.reward_models
        if any(_weight(weights, name) for weights in (config.rewards, config.evaluate.rewards))
    ]
    for what, path, adapter in models:
        if not path.startswith(RANDOM) and (path or not adapter):
            items.append(_model(f"{what} {path}", path, adapter, places))
    return items


def _data(paths: Iterable[str], places: Places) -> Iterator[Item]:
    """Yield what has the data files of a task, the files of an archive together."""
    of_place: dict[str, list[Path]] = {}
    for path in paths:
        if path.startswith(tfds_source.PREFIX):
            yield TFDS(f"data set {path}", path)
        elif found := find(path, places):
            of_place.setdefault(found[0], []).append(Path(path))
        else:
            yield Own(f"data {path}", path_of(path))
    for name, those in of_place.items():
        title = f"data {', '.join(map(str, those))}"
        yield Published(title, tuple(those), name, places[name])


def _texts(options: Any) -> list[str]:
    """Return the texts in a task's options, each once."""
    values = (value for _, value in sorted(options.items()))
    each = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
    return list(dict.fromkeys(one for one in each if isinstance(one, str)))


def _hub_data(texts: Sequence[str], files: Sequence[str]) -> list[str]:
    """Return the hub data sets among the texts: names of splits, and known names without."""
    others = (text for text in texts if text not in files and not sources.is_file(text))
    return [text for text in others if text in HUB_DATA or _SPLIT.fullmatch(text)]


def _model(title: str, path: str, adapter: bool, places: Places) -> Item:
    model = Model(title, path, adapter)
    found = find(path, places) if path else None
    if found is None:
        return model
    return PublishedModel(Published(title, (Path(path),), *found), model)


def _weight(weights: Any, name: str) -> float:
    return weights[name] if name in weights else 0.0


def _size(size: int) -> str:
    return in_bytes(size) if size else "size not known"


def _licence(licence: str | None) -> str:
    return f"licence: {licence or 'see there'}"
