"""Opening and loading checkpoints: Hugging Face directories, hub names and GGUF files.

Tensor names are in `models.families`. A weight that is missing, unexpected or of another
shape is an error. Nothing is guessed, and no pickle is executed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from alol_jax.errors import UserError, format_names
from alol_jax.models.config import ModelConfig
from alol_jax.models.families.layouts import Row, rows_of
from alol_jax.models.families.registry import (
    ARCHITECTURES,
    BUFFERS,
    FAMILIES,
    GGUF_FORMS,
    causal_lm,
)
from alol_jax.models.files.gguf_file import GGUFFile, WeightFiles
from alol_jax.models.files.hf_config import from_hf
from alol_jax.models.files.hf_reader import copied, download, on_hub
from alol_jax.models.files.packages import PACKAGES, PREFIX, packaged_weights
from alol_jax.models.files.peft_changes import BaseChanges
from alol_jax.models.files.stored_nf4 import (
    NF4Directory,
    check_all_quantised,
    leaves_of,
    open_weights,
)
from alol_jax.models.nf4 import NF4, quantise
from alol_jax.models.transformer import is_block_kernel, param_shapes
from alol_jax.paths import is_bucket
from alol_jax.runs.progress import progress
from alol_jax.text.gguf_tokenizer import GGUFVocabulary
from alol_jax.types import Params, Watch

ShardingFn = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""(path, shape) of a parameter -> its sharding."""


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The source of a tokenizer: exactly one of the two is set."""

    directory: Path | None
    vocabulary: GGUFVocabulary | None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: names and shapes are checked, but no weight has been read."""

    where: str  # the path it was opened with, for messages
    architecture: str  # a key of families.registry.ARCHITECTURES
    config: ModelConfig
    tokenizer: TokenizerFiles
    files: tuple[Path, ...]  # what the fingerprint covers
    weights: WeightFiles
    rows: tuple[Row, ...]  # the tensors, by the names in the files
    tied_head: str  # the name of the head's tensor, stored or not; "" if there is no such head
    commit: str = ""  # that was read of a repository on the hub
    changes: BaseChanges = BaseChanges()  # what an adapter makes of them while they are loaded

    def load(
        self, dtype: jax.typing.DTypeLike, sharding: ShardingFn, nf4: NF4 | None = None
    ) -> Params:
        """Load all parameters; the host holds one stored tensor at a time.

        Args:
          dtype: dtype of the parameters; stored values are rounded to it.
          sharding: the sharding of each parameter; each layer is written into its stack at once.
          nf4: quantise the kernels of the blocks, layer by layer, from the stored values; or, if
            they are stored so, keep them.

        Raises:
          ValueError: ``nf4`` is not ``stored_nf4``, though that is not None.
          UserError: a stored head differs from the embedding that the config ties it to, a file
            cannot be read, or a number in it is NaN or infinite.
        """
        if self.stored_nf4 not in (None, nf4):
            raise ValueError(f"{self.where} is stored as {self.stored_nf4}, not {nf4}")
        self._check_tied_head()
        params: Params = {}
        places = [
            (row, layer) for row in self.rows for layer, _ in enumerate(row.names(self.config))
        ]
        for row, layer in progress(places, Watch("weights"), total=len(places)):
            name = row.name.format(i=layer)
            if self.stored_nf4 is not None and name in self.weights.quantised:
                self._set_stored(params, row, name, layer, sharding)
                continue
            parts = self.parts(row, layer)
            for path, value in zip(row.paths, parts, strict=True):
                if row.layered:
                    self._set_layer(params, path, value, layer, dtype, sharding, nf4)
                else:
                    params |= _place(path, value, dtype, sharding(path, value.shape), None)
        return params

    def parts(self, row: Row, layer: int) -> list[np.ndarray]:
        """Return the parameters in the tensor of a row, of one layer; 0 for rows without layers."""
        stored = self.weights.read(row.name.format(i=layer))
        parts = row.layout.split(self.config, stored)
        return [self.changes(path, layer, x) for path, x in zip(row.paths, parts, strict=True)]

    def _set_layer(self, params, path, value, layer, dtype, sharding, nf4) -> None:
        """Write the value of one layer into the stacked parameter of ``params``."""
        one = _layer_sharding(sharding(path, (self.config.layers, *value.shape)))
        for leaf_path, leaf in _place(path, value, dtype, one, nf4).items():
            self._set_leaf(params, leaf_path, leaf, layer, sharding)

    def _set_stored(self, params, row, name, layer, sharding) -> None:
        """Write one layer of the kernels of a row, which are stored in NF4, as they are."""
        stored = self.weights.read_stored(name)
        every = leaves_of(row, self.config, stored, self.where)
        for path, leaves in zip(row.paths, every, strict=True):
            for leaf_name, leaf in leaves.items():
                leaf_path = path.removesuffix("kernel") + leaf_name
                one = _layer_sharding(sharding(leaf_path, (self.config.layers, *leaf.shape)))
                self._set_leaf(params, leaf_path, jax.device_put(leaf, one), layer, sharding)

    def _set_leaf(self, params, path, leaf, layer, sharding) -> None:
        """Write one layer of a stacked leaf."""
        count = self.config.layers
        whole = sharding(path, (count, *leaf.shape))
        if layer == 0:
            params[path] = jnp.zeros((count, *leaf.shape), leaf.dtype, device=whole)
        params[path] = _layer_writer(whole)(params[path], leaf, layer)

    @property
    def stored_nf4(self) -> NF4 | None:
        """How the kernels of the blocks are stored in 4 bits; None if they are not."""
        return self.weights.nf4 if isinstance(self.weights, NF4Directory) else None

    def fingerprint(self) -> str:
        """Return the blake2b hash of the contents of config and weight files, as 32 hex digits.

        What an adapter changes counts too.
        """
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
        self.changes.hash_into(digest)
        return digest.hexdigest()

    def _check_tied_head(self) -> None:
        """Raise UserError if a tied model also stores a head that differs from the embedding."""
        if not self.config.tied_embeddings or self.tied_head not in self.weights.shapes:
            return
        embedding = next(row.name for row in self.rows if row.paths == ("embed/embedding",))
        if not np.array_equal(self.weights.read(self.tied_head), self.weights.read(embedding)):
            raise UserError(
                f"{self.where}: the config ties {self.tied_head} to {embedding}, but they differ: "
                "set tie_word_embeddings to false in config.json if both are meant"
            )


def _place(
    path: str, value: np.ndarray, dtype: jax.typing.DTypeLike, sharding: jax.sharding.Sharding, nf4
) -> Params:
    """Put one stored parameter on the devices, quantised if ``nf4`` applies to it."""
    if nf4 is None or not is_block_kernel(path):
        return {path: jax.device_put(np.asarray(value, np.dtype(dtype)), sharding)}
    parts = _quantise(jax.device_put(value, sharding), nf4)
    stem = path.removesuffix("kernel")
    return {stem + name: part for name, part in parts.items()}


@functools.partial(jax.jit, static_argnums=1)
def _quantise(kernel: jax.Array, nf4: NF4) -> dict[str, jax.Array]:
    return quantise(kernel, nf4=nf4)


def _layer_sharding(stack: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Return the sharding of one layer of a stack."""
    if isinstance(stack, NamedSharding):
        return NamedSharding(stack.mesh, PartitionSpec(*stack.spec[1:]))
    return stack


@functools.lru_cache(maxsize=64)
def _layer_writer(sharding: jax.sharding.Sharding):
    """Return a function (stack, value, layer) -> stack that sets one layer in place."""
    return jax.jit(
        lambda stack, value, layer: jax.lax.dynamic_update_index_in_dim(stack, value, layer, 0),
        donate_argnums=0,
        out_shardings=sharding,
    )


def open_checkpoint(path: str) -> Checkpoint:
    """Open a checkpoint and check that its config and weights are supported.

    Args:
      path: a Hugging Face directory, a .gguf file, either of them in a bucket, "package:NAME" (the
        model in that installed package, see `packages`), or a hub name "org/name", with "@revision"
        if one is meant.

    Raises:
      UserError: there is no such checkpoint, or it cannot be read exactly.
    """
    local = copied(path) if is_bucket(path) else Path(path).expanduser()
    if path.startswith(PREFIX):
        local = packaged_weights(path)
        if local.suffix != ".gguf":
            return _open_directory(local.parent, path)
    if local.is_dir():
        return _open_directory(local, path)
    if local.suffix == ".gguf":
        return _open_gguf(local, path)
    if not local.exists() and (model := on_hub(path)):
        folder = download(model)
        return dataclasses.replace(_open_directory(folder, path), commit=folder.name)
    raise UserError(
        f"{path!r} is not a checkpoint: give a Hugging Face directory, a .gguf file, a hub name "
        f"(org/name) or one of {', '.join(PREFIX + name for name in PACKAGES)}"
    )


def _open_directory(directory: Path, where: str) -> Checkpoint:
    weights = open_weights(directory)
    file = str(directory / "config.json")
    config = from_hf(weights.config_json, file)
    architecture = _architecture(weights.config_json, config, file)
    body, prefix = FAMILIES[config.family].body, FAMILIES[config.family].prefix
    bare = not any(name.startswith(prefix) for name in weights.shapes)
    if bare:  # the file holds only the body: the same names without the prefix
        body = tuple(row._replace(name=row.name.removeprefix(prefix)) for row in body)
    kind = ARCHITECTURES[architecture]
    checkpoint = Checkpoint(
        where=where,
        architecture=architecture,
        config=config,
        tokenizer=TokenizerFiles(directory=directory, vocabulary=None),
        files=weights.files,
        weights=weights,
        rows=rows_of(body + kind.head, config),
        tied_head=_head_name(kind.head),
    )
    _check_weights(checkpoint, kind.ignored)
    if isinstance(weights, NF4Directory):
        kernels = (row for row in checkpoint.rows if is_block_kernel(row.paths[0]))
        check_all_quantised(weights, frozenset(n for row in kernels for n in row.names(config)))
    return checkpoint


def _open_gguf(file: Path, where: str) -> Checkpoint:
    weights = GGUFFile(file)
    config, rows = weights.config, GGUF_FORMS[weights.arch].rows
    checkpoint = Checkpoint(
        where=where,
        architecture=causal_lm(config.family),
        config=config,
        tokenizer=TokenizerFiles(directory=None, vocabulary=weights.vocabulary()),
        files=(file,),
        weights=weights,
        rows=rows_of(rows, config),
        tied_head=_head_name(rows),
    )
    _check_weights(checkpoint, ignored="")
    return checkpoint


def _architecture(config_json: dict, config: ModelConfig, where: str) -> str:
    """Return the class that config.json names; it must be implemented and of the family."""
    stated = config_json.get("architectures") or []
    known = [name for name in stated if name in ARCHITECTURES]
    if not known or ARCHITECTURES[known[0]].family != config.family:
        fitting = [name for name, kind in ARCHITECTURES.items() if kind.family == config.family]
        raise UserError(
            f"{where}: architectures = {stated!r} is not implemented for {config.family} "
            f"(only {', '.join(fitting)} are): choose another checkpoint"
        )
    return known[0]


def _head_name(rows: Sequence[Row]) -> str:
    """Return the name of the language model head's tensor; "" for other heads."""
    return next((row.name for row in rows if row.paths == ("head/kernel",)), "")


def _expected_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of every expected tensor; None for heads, which their reader checks."""
    ours = param_shapes(checkpoint.config)
    expected: dict[str, tuple[int, ...] | None] = {}
    for row in checkpoint.rows:
        known = set(row.paths) <= ours.keys()
        shape = row.stored_shape(checkpoint.config, ours) if known else None
        expected |= dict.fromkeys(row.names(checkpoint.config), shape)
    return expected


def _hint(checkpoint: Checkpoint) -> str:
    """Say which other family's weights are stored, if they are those of one."""
    stored = {re.sub(r"\.\d+\.", ".{i}.", name) for name in checkpoint.weights.shapes}
    found = []
    for family in FAMILIES.values():
        names = {row.name for row in family.body}
        needed = {name for name in names if not name.endswith("_proj.bias")}
        below = {name for name in stored if name.startswith(family.prefix)}
        if needed <= below <= names and family.name != checkpoint.config.family:
            found.append(family.name)
    if not found:
        return ""
    return f"; they are those of {' or '.join(found)}: correct model_type in config.json"


def _check_weights(checkpoint: Checkpoint, ignored: str) -> None:
    """Raise UserError unless exactly the expected weights are stored, in the expected shapes."""
    expected, stored = _expected_shapes(checkpoint), checkpoint.weights.shapes
    missing = [name for name in expected if name not in stored]
    unexpected = [
        name
        for name in stored
        if name not in expected
        and name != checkpoint.tied_head
        and not BUFFERS.fullmatch(name)
        and not re.fullmatch(ignored, name)
    ]
    if missing or unexpected:
        raise UserError(
            f"{checkpoint.where}: the weights are not those of the config: "
            f"missing {format_names(missing)}; unexpected {format_names(unexpected)}"
            f"{_hint(checkpoint)}"
        )
    wrong = [
        f"{name} {stored[name]}, expected {shape}"
        for name, shape in expected.items()
        if shape is not None and stored[name] != shape
    ]
    if wrong:
        raise UserError(f"{checkpoint.where}: weights of another shape: {format_names(wrong)}")
