"""Data sets of the Hugging Face hub: ``org/name``, ``org/name:part:split``, with ``@revision``.

The part between the colons is a config of the data set or, if it has none of that name, a folder.
With one part, ``org/name:part``, it is a config or a split. The split is "train" by default.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from alol_jax.errors import UserError, reason

NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+){0,2}(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Named(NamedTuple):
    """A name, taken apart."""

    dataset: str
    parts: tuple[str, ...]  # at most two
    revision: str | None  # a branch, tag or commit

    @property
    def stem(self) -> str:
        """The bare name of the data set."""
        return self.dataset.rpartition("/")[2]


def parse(name: str) -> Named:
    """Take "org/name:part:split@revision" apart; all but the first is optional."""
    bare, _, revision = name.partition("@")
    dataset, *parts = bare.split(":")
    return Named(dataset, tuple(parts), revision or None)


def load(name: str, split: str | None = None) -> Any:
    """Return a split of a data set: a `datasets.Dataset`.

    Args:
      split: the one to take of a name without one; None: the name says it, or it is "train".

    Raises:
      UserError: there is no such data set, split or revision, it is not for everyone, or there is
        no connection.
    """
    import datasets

    asked = split or (parse(name).parts or ("train",))[-1]
    try:
        place, told = _keywords(name, split)
        return datasets.load_dataset(parse(name).dataset, split=told or "train", **place)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{name}: cannot load {asked!r} from the Hugging Face hub ({reason(error)}): "
            f"{_way_out(name)}"
        ) from error
    except Exception as error:  # the hub client's, the network's and the readers' own errors
        raise UserError(
            f"{name}: cannot load {asked!r} from the Hugging Face hub ({reason(error)}); name "
            "local files instead where there is no connection"
        ) from error


def commit_of(dataset: Any) -> str | None:
    """Return the commit that a loaded data set was read from: its files are in a folder of that
    name. None for data sets that are in memory."""
    parts = (part for file in dataset.cache_files for part in Path(file["filename"]).parts)
    return next(filter(_COMMIT.fullmatch, parts), None)


def cache(name: str) -> None:
    """Download a split, or with "org/name" all splits.

    Raises:
      UserError: there is no such data set or split, it is not for everyone, or no connection.
    """
    import datasets

    dataset = parse(name).dataset
    try:
        place, split = _keywords(name)
        datasets.load_dataset(dataset, split=split, **place)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{name}: no such data set on the Hugging Face hub, or not for everyone: "
            f"{_way_out(name)}"
        ) from error
    except Exception as error:  # the hub client's, the network's and the readers' own errors
        raise UserError(
            f"{name}: cannot be loaded from the Hugging Face hub ({reason(error)}): run the same "
            "command again where there is a connection"
        ) from error


def _way_out(name: str) -> str:
    """Return what to do about a data set that the hub does not give."""
    return (
        "check the name; or accept its terms at "
        f"https://huggingface.co/datasets/{parse(name).dataset} and log in with `hf auth login`"
    )


def is_cached(name: str) -> bool:
    """Whether a split, named as in ``cache``, is here in the version that the hub has now."""
    import datasets

    try:
        place, split = _keywords(name)
        builder = datasets.load_dataset_builder(parse(name).dataset, **place)
    except Exception:  # not here, and not to be had: `cache` says why
        return False
    here = Path(builder.cache_dir).is_dir()
    return here and (not split or split in (builder.info.splits or {split: None}))


def _keywords(name: str, split: str | None = None) -> tuple[dict[str, str | None], str | None]:
    """Return the arguments of `datasets.load_dataset` besides the name, and the split.

    Args:
      split: see `load`; None: the last part of the name, if it is no config.
    """
    import datasets

    # It warns of each attempt without a connection; the last one is an error too.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    named = parse(name)
    place: dict[str, str | None] = {"data_dir": None}
    if named.revision is not None:
        place["revision"] = named.revision
    if not named.parts:
        return place, split
    configs = datasets.get_dataset_config_names(named.dataset, revision=named.revision)
    part, *rest = named.parts
    if not rest and split is None and part not in configs:
        return place, part
    place["name" if part in configs else "data_dir"] = part or None
    return place, rest[0] if rest else split
