"""Reading Hugging Face directories: the only module that imports safetensors and the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from alol_jax.errors import UserError
from alol_jax.models.families.registry import BUFFERS

_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CRITIC_HEAD = "custom_roberta_classification_head.safetensors"  # next to a critic's body
DOWNLOADED = (
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
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    CRITIC_HEAD,
)
"""Patterns of the files of a model on the hub."""


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class TensorFiles:
    """The named tensors of one or many safetensors files.

    ``shapes`` are as stored. Tensors are read one at a time, and no file stays memory-mapped, so
    that pages already read do not count as memory in use.

    Raises:
      UserError: a file is damaged, has weights of an unsupported dtype (only masks and positions of
        old exports may be integers), or a name is stored in two files.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        for file in files:
            with _open(file) as shard:
                self._add(file, shard)

    def read(self, name: str) -> np.ndarray:
        """Read the tensor ``name`` as stored: f16, bf16, f32 or f64, of shape ``shapes[name]``."""
        with _open(self._file_of[name]) as shard:
            return shard.get_tensor(name)

    def _add(self, file: Path, shard: Any) -> None:
        """Add the tensors of a file to the index."""
        for name in shard.keys():
            if name in self._file_of:
                raise UserError(f"{file}: {name} is stored in two files: remove one of them")
            entry = shard.get_slice(name)
            if entry.get_dtype() not in _DTYPES and not BUFFERS.fullmatch(name):
                raise UserError(
                    f"{file}: {name} is stored as {entry.get_dtype()}, which is not supported: "
                    f"choose a checkpoint in {', '.join(sorted(_DTYPES))}"
                )
            self.shapes[name] = tuple(entry.get_shape())
            self._file_of[name] = file


class HFDirectory(TensorFiles):
    """config.json with model.safetensors, or with shards and model.safetensors.index.json.

    The index only lists the files; the tensor names come from the shards.

    Raises:
      UserError: a file is missing, damaged or a pickle, or has an unsupported dtype.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_json = json_object(path / "config.json")
        self.files = (path / "config.json", *_weight_files(path))
        super().__init__(self.files[1:])


def _open(file: Path) -> Any:
    """Open a safetensors file, for use in a ``with``."""
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is damaged or not a safetensors file ({error}): download it again"
        ) from error


def download(name: str, patterns: Sequence[str] = DOWNLOADED) -> Path:
    """Return the local directory of the hub model ``name`` ("org/name"), downloading if needed.

    Args:
      name: the model on the Hugging Face hub.
      patterns: patterns of the files to download.

    Raises:
      UserError: there is no such model, no connection, or no permission.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except huggingface_hub.errors.GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then log in "
            "with `hf auth login`"
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


def refuse_pickle(file: Path) -> None:
    """Raise UserError, with a command that converts it, if ``file`` is a pickle.

    Pickles can run any code. The command keeps every tensor name, so a classifier keeps its head.
    """
    if file.suffix not in _PICKLES:
        return
    parts, target = file, file.with_suffix(".safetensors")
    if file.name.startswith("pytorch_model"):  # one file or several shards
        parts, target = file.with_name("pytorch_model*.bin"), file.with_name("model.safetensors")
    raise UserError(
        f"{file} is a pickle, which may run code when read: if you trust it, load it with its "
        "class of transformers and call save_pretrained, or convert it: "
        '`python -c "import glob, torch, safetensors.torch as s; '
        f"s.save_file({{k: v.contiguous().clone() for f in glob.glob('{parts}') for k, v in "
        f"torch.load(f, weights_only=True).items()}}, '{target}', {{'format': 'pt'}})\"`"
    )


def _weight_files(path: Path) -> tuple[Path, ...]:
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file() and index.is_file():
        raise UserError(f"{path} holds both {whole.name} and {index.name}: remove one of them")
    if whole.is_file():
        return (whole,)
    if not index.is_file():
        for file in sorted(path.iterdir()):
            if file.name != "training_args.bin":
                refuse_pickle(file)
        raise UserError(
            f"{path} holds neither {whole.name} nor {index.name}; if the hub repository has only "
            "pickles (.bin), download it: given that directory, this error says how to convert it"
        )
    shards = json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index}: weight_map is missing or empty: download it again")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: {name!r} is not the name of a safetensors file beside it")
        if not (path / name).is_file():
            raise UserError(f"{path}: shard {name} is missing ({len(names)} in all): download it")
    return tuple(path / name for name in names)


def json_object(file: Path) -> dict[str, Any]:
    """Read the object of a JSON file.

    Raises:
      UserError: the file is missing or damaged, or does not hold one object.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} must hold one JSON object")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
