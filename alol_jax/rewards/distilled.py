"""A small reward model that `distill_reward` fitted: a frozen language model and a value head.

    score = sigmoid(w · pool(h([prompt | response])) + b)

with h the hidden states of the base and pool the value head's attention, over all real tokens. A
folder holds ``reward.json`` (the base, by its place and its fingerprint, the head, what is read)
and ``head/`` (the head's parameters).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.devices.sharding import place_params
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.models.transformer import Transformer
from alol_jax.rewards.batched import Reading, in_batches, reading_of
from alol_jax.rewards.classifier import check_batch
from alol_jax.runs.checkpoint import load_params, save_params
from alol_jax.types import Params, UserError, Watch

DESCRIPTION = "reward.json"
HEAD = "head"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Description:
    """What a distilled reward model is, as ``reward.json`` says it.

    Attributes:
        template: what the base reads, with ``{prompt}``.
        limits: most tokens of prompt and response.
        heads: of the value head.
        base: weights, tokenizer, dtype and quantisation of the base (`base_of`).
        model: ``config.model``, to open the base again.
        figures: how well it predicts rows that it was not fitted on.
    """

    template: str
    limits: tuple[int, int]
    heads: int
    base: dict[str, Any]
    model: dict[str, Any]
    figures: dict[str, float]


def base_of(lm: LanguageModel) -> dict[str, Any]:
    """What the hidden states of the base depend on."""
    said = lm.fingerprint
    kept = {name: said[name] for name in ("weights", "tokenizer")}
    return kept | {name: lm.options[name] for name in ("dtype", "quantisation")}


def read(lm: LanguageModel, description: Description, prompt: str, response: str) -> tuple:
    """The ids that the base reads: the prompt in its template, and the response."""
    limits = description.limits
    asked = lm.tokenizer.encode_prompt(description.template, prompt, limit=limits[0])
    return (*asked, *lm.tokenizer.encode_response(response, limit=limits[1])[0])


def reader_of(lm: LanguageModel, description: Description) -> tuple[Transformer, Reading]:
    """The base without adapters, and the lengths at which it reads."""
    model = lm.transformer
    reading = reading_of(model.config, model.dtype, lm.mesh, sum(description.limits))
    return dataclasses.replace(model, lora=None, attention=reading.attention), reading


@functools.lru_cache(maxsize=8)
def _scorer(model: Transformer, head: ValueHead) -> Callable[..., jax.Array]:
    @jax.jit
    def score(base, params, tokens, mask):
        return head(params, model.hidden(base, tokens, mask), mask)

    return score


@dataclasses.dataclass(frozen=True, eq=False)
class DistilledScorer:
    """Attributes:
    path: its folder.
    description: what it is.
    lm: the language model whose base it stands on; the run's own where that is the same.
    head: the parameters, on the mesh.
    batch_size: rows scored together.
    """

    path: str
    description: Description
    lm: LanguageModel
    head: Params
    batch_size: int

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Changes with the base, the form or the head."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(self.head):
            digest.update(path.encode() + np.asarray(self.head[path]).tobytes())
        said = dataclasses.asdict(self.description)
        kept = {name: said[name] for name in ("template", "limits", "heads", "base")}
        return kept | {"head": digest.hexdigest()}

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """f64[rows] in (0, 1)."""
        rows = [
            read(self.lm, self.description, prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        model, reading = reader_of(self.lm, self.description)
        head = ValueHead(model.config.width, 1.0, self.description.heads)
        return in_batches(
            functools.partial(_scorer(model, head), self.lm.base, self.head),
            rows,
            batching=self.lm.batching(self.batch_size)._replace(widths=reading.widths),
            watch=Watch(f"reward model {self.path}"),
        )


def refuse_taken(folder: Path) -> None:
    """Raises UserError unless a reward model can be written to ``folder``: absent, or empty but for
    what an interrupted write left."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --out")
    if folder.is_dir() and {item.name for item in folder.iterdir()} - {HEAD}:
        raise UserError(f"{folder} is not empty: choose another --out")


def save_distilled(folder: Path, description: Description, head: Params) -> None:
    """Writes a reward model that ``config.reward_models.*.path`` can name.

    Raises:
        UserError: see `refuse_taken`; or it cannot be written.
    """
    refuse_taken(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / HEAD, ignore_errors=True)
    save_params(folder / HEAD, head)
    text = json.dumps({"format": FORMAT} | dataclasses.asdict(description), indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def read_description(file: Path, where: str) -> Description:
    """What ``reward.json`` says.

    Raises:
        UserError: it is damaged or of another format.
    """
    names = {field.name for field in dataclasses.fields(Description)}
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        said = None
    if not isinstance(said, dict) or said.pop("format", None) != FORMAT or said.keys() != names:
        raise UserError(f"{where}: {file} is damaged or of another format: distil it again")
    return Description(**said | {"limits": tuple(said["limits"])})


def open_distilled(
    wanted: ConfigDict,
    where: str,
    turns: Callable[[str], tuple[str, ...]],
    lm: LanguageModel,
) -> DistilledScorer:
    """The distilled reward model in the folder ``wanted.path``.

    Its base is that of ``lm`` where the two are the same: then no second model is in memory.

    Args:
        wanted: one entry of ``config.reward_models``; ``path`` and ``batch_size`` are read.
        where: its place in the config, for messages.
        turns: not read: a distilled model reads a prompt as the language model does.

    Raises:
        UserError: another format, or a base that is not the one that the head was fitted on.
    """
    check_batch(wanted, where, lm)
    folder = Path(wanted.path).expanduser()
    description = read_description(folder / DESCRIPTION, where)
    base = lm if base_of(lm) == description.base else _opened_again(description, where, lm)
    head = place_params(load_params(folder / HEAD), lm.mesh)
    return DistilledScorer(wanted.path, description, base, head, wanted.batch_size)


def _opened_again(description: Description, where: str, lm: LanguageModel) -> LanguageModel:
    options = ConfigDict(description.model)
    options.shapes = tuple(tuple(shape) for shape in options.shapes)
    options.lora.modules = tuple(options.lora.modules)
    options.attention = "auto"  # it was chosen for another machine
    opened = open_language_model(options, lm.mesh)
    if base_of(opened) != description.base:
        raise UserError(
            f"{where}: the model at {options.path} is not the one that this reward model was "
            "distilled on: bring that one back, or distil again"
        )
    return opened
