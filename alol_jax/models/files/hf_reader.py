"""Reading Hugging Face directories: the only module that imports safetensors.

Weights are safetensors or, where there are none, files of torch.save (`torch_reader`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import safetensors

from alol_jax.errors import UserError
from alol_jax.models.families.registry import BUFFERS
from alol_jax.models.files.finite import check_finite
from alol_jax.models.files.torch_reader import TorchFile
from alol_jax.paths import check_no_pointer, local_copy
from alol_jax.runs.progress import on_terminal

DTYPES = frozenset({"F64", "F32", "F16", "BF16"})  # of weights
# next to a critic's body; the first that is there is read
CRITIC_HEADS = (
    "custom_roberta_classification_head.safetensors",
    "custom_roberta_classification_head.pt",
)


class HubFiles(NamedTuple):
    """Patterns of the files to download of a repository on the hub."""

    always: tuple[str, ...]
    weights: tuple[str, ...]
    torch_weights: tuple[str, ...]  # downloaded where there are none of ``weights``


MODEL_FILES = HubFiles(
    (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        *CRITIC_HEADS,
        "modules.json",  # of sentence encoders
        "sentence_bert_config.json",
        "*_Pooling/config.json",
    ),
    ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"),
)

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


class OnHub(NamedTuple):
    """A repository on the hub."""

    name: str  # org/name
    revision: str | None  # a branch, a tag or a commit; None for the main branch


def on_hub(path: str) -> OnHub | None:
    """Return what "org/name" or "org/name@revision" means on the hub; None for other texts."""
    found = _HUB_NAME.fullmatch(path)
    return OnHub(*found.groups()) if found else None


class TensorFiles:
    """The named tensors of one or many files, each of safetensors or of torch.save.

    ``shapes`` are as stored. Tensors are read one at a time, and no file stays memory-mapped, so
    that pages already read do not count as memory in use.

    Raises:
      UserError: a file is damaged, holds more than tensors, has weights of an unsupported dtype
        (only masks and positions of old exports may be integers), or a name is stored in two files.
    """

    dtypes = DTYPES

    def __init__(self, files: Iterable[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, _TensorFile] = {}
        for file in files:
            self._add(file, _open(file))

    def read(self, name: str) -> np.ndarray:
        """Read the tensor ``name`` as stored: f16, bf16, f32 or f64, of shape ``shapes[name]``.

        Raises:
          UserError: a number is NaN or infinite.
        """
        shard = self._file_of[name]
        return check_finite(shard.file, name, shard.read(name))

    def _add(self, file: Path, shard: _TensorFile) -> None:
        """Add the tensors of a file to the index."""
        for name, (dtype, shape) in shard.entries.items():
            if name in self._file_of:
                raise UserError(f"{file}: {name} is stored in two files: remove one of them")
            if dtype not in self.dtypes and not BUFFERS.fullmatch(name):
                raise UserError(
                    f"{file}: {name} is stored as {dtype}, which is not supported: "
                    f"choose a checkpoint in {', '.join(sorted(DTYPES))}"
                )
            self.shapes[name] = shape
            self._file_of[name] = shard


class _TensorFile(Protocol):
    """One file of named tensors."""

    file: Path
    entries: dict[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)

    def read(self, name: str) -> np.ndarray: ...


class _SafetensorsFile:
    """The named tensors of one safetensors file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with self._open() as shard:
            slices = {name: shard.get_slice(name) for name in shard.keys()}
            self.entries = {
                name: (entry.get_dtype(), tuple(entry.get_shape()))
                for name, entry in slices.items()
            }

    def read(self, name: str) -> np.ndarray:
        with self._open() as shard:
            return shard.get_tensor(name)

    def _open(self) -> Any:
        """Open the file, for use in a ``with``."""
        try:
            return safetensors.safe_open(self.file, framework="numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{self.file} is damaged or not a safetensors file ({error}): download it again"
            ) from error


def _open(file: Path) -> _TensorFile:
    check_no_pointer(file)
    return _SafetensorsFile(file) if file.suffix == ".safetensors" else TorchFile(file)


class HFDirectory(TensorFiles):
    """config.json with model.safetensors, or with shards and model.safetensors.index.json.

    Without these, with pytorch_model.bin, or with shards and pytorch_model.bin.index.json. An index
    only lists the files; the tensor names come from the shards.

    Raises:
      UserError: a file is missing or damaged, holds more than tensors, or has an unsupported dtype.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_json = json_object(path / "config.json")
        self.files = (path / "config.json", *_weight_files(path))
        super().__init__(self.files[1:])


def download(model: OnHub, files: HubFiles = MODEL_FILES) -> Path:
    """Return the local directory of a model of the hub, downloading if needed.

    The directory is called by its commit.

    Args:
      model: what to download from.
      files: what to download.

    Raises:
      UserError: there is no such model or revision, no connection, or no permission.
    """
    folder = _snapshot(model, [*files.always, *files.weights])
    if not any(True for pattern in files.weights for _ in folder.glob(pattern)):
        # Of the same commit; offline, each call looks into the cache.
        same = model._replace(revision=folder.name)
        folder = _snapshot(same, [*files.always, *files.torch_weights])
    return folder


def copied(url: str, files: HubFiles = MODEL_FILES) -> Path:
    """Return a local copy of the model ``url`` in a bucket: of its folder, or of its one file.

    Raises:
      UserError: there is nothing, or it cannot be read.
    """
    folder = local_copy(url, (*files.always, *files.weights))
    if folder.is_file() or any(True for pattern in files.weights for _ in folder.glob(pattern)):
        return folder
    return local_copy(url, files.torch_weights)


def _snapshot(model: OnHub, patterns: list[str]) -> Path:
    """Return the local directory with the files of a hub model that match one of ``patterns``."""
    import huggingface_hub.utils

    name, revision = model
    if not on_terminal():
        huggingface_hub.utils.disable_progress_bars()
    try:
        found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        return Path(found)
    except huggingface_hub.errors.GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then log in "
            "with `hf auth login`"
        ) from error
    except huggingface_hub.errors.RevisionNotFoundError as error:
        raise UserError(
            f"{name} on the Hugging Face hub has no branch, tag or commit {revision!r}: see "
            f"https://huggingface.co/{name}/tree/main"
        ) from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name} is neither a directory here nor on the Hugging Face hub, or it is private "
            "there: check the name, log in with `hf auth login`, or, if a config of ours names it, "
            "`python -m alol_jax.prepare --config=…` brings it"
        ) from error
    except (OSError, ValueError, huggingface_hub.errors.EntryNotFoundError) as error:
        raise UserError(
            f"{name} is not a local directory and could not be downloaded from the Hugging Face "
            f"hub ({_one_line(error)}): check name and connection, or give a local directory"
        ) from error


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of these files that is in the folder; None if none is."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _weight_files(path: Path) -> tuple[Path, ...]:
    for name, ending in (("model.safetensors", ".safetensors"), ("pytorch_model.bin", ".bin")):
        whole, index = path / name, path / f"{name}.index.json"
        if whole.is_file() and index.is_file():
            raise UserError(f"{path} holds both {whole.name} and {index.name}: remove one of them")
        if whole.is_file():
            return (whole,)
        if index.is_file():
            return _shards(index, ending)
    raise UserError(
        f"{path} holds neither model.safetensors nor pytorch_model.bin, and no index of shards "
        "(one of these names with .index.json): download them"
    )


def _shards(index: Path, ending: str) -> tuple[Path, ...]:
    """Return the files that an index lists."""
    shards = json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index}: weight_map is missing or empty: download it again")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(ending):
            raise UserError(f"{index}: {name!r} is not the name of a {ending} file beside it")
        if not (index.parent / name).is_file():
            raise UserError(
                f"{index.parent}: shard {name} is missing ({len(names)} in all): download it"
            )
    return tuple(index.parent / name for name in names)


def json_object(file: Path) -> dict[str, Any]:
    """Read the object of a JSON file.

    Raises:
      UserError: the file is missing or damaged, or does not hold one object.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing")
    check_no_pointer(file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} must hold one JSON object")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
