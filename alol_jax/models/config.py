"""Model architectures: `ModelConfig`, the list of all supported choices.

Every family is the same transformer with different values; `presets` has them by name.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alol_jax.errors import UserError
from alol_jax.models.rotary import DynamicScaling, LongRope, Rotary

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
UNGATED = (*ATTENTION_PROJECTIONS, "up_proj", "down_proj")  # all of a block without a gate


@dataclasses.dataclass(frozen=True)
class Local:
    """Layers with a sliding window, alone or among others that see everything.

    Raises:
      UserError: the window is not positive, or no layer is local.
    """

    window: int  # positions that a query sees, its own included
    pattern: tuple[bool, ...] = (True,)  # which layers are local, repeated over all layers
    rotary: Rotary | None = None  # of the local layers; None: that of the others

    def __post_init__(self) -> None:
        if self.window < 1 or not any(self.pattern):
            raise UserError(
                f"model: a sliding window of {self.window} must be positive, in some layer"
            )


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """What attention does besides softmax(q kᵀ / √H) v.

    Raises:
      UserError: ``query_key_norm`` is unknown, or ``scale`` or ``cap`` is not positive.
    """

    query_key_norm: str | None = None  # RMS norm of q and k, per "head" or over "all" heads
    local: Local | None = None
    scale: float | None = None  # of the scores q kᵀ; None: 1 / √H
    cap: float | None = None  # scaled scores s become cap · tanh(s / cap)

    def __post_init__(self) -> None:
        if self.query_key_norm not in (None, "head", "all"):
            raise UserError(f"model: query_key_norm = {self.query_key_norm!r} must be head or all")
        for name in ("scale", "cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"model: attention {name} = {value} must be positive")


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """What is added to, or done with, the embeddings of the tokens."""

    scaled: bool = False  # multiplied by √D, in the dtype of the activations
    position_offset: int = 0  # row of the first position's embedding, without rotary positions
    token_types: int = 0  # rows of the token-type embedding, added to the tokens


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of a model.

    Raises:
      UserError: a size is not positive, ``heads`` is not a multiple of ``kv_heads``, a head has
        fewer features than ``rotary`` rotates, ``biases`` names no projection of a block, or
        sliding windows are combined with attention in both directions.
    """

    family: str  # selects weight names and config.json format; not used in the computation
    vocab_size: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # N, query heads
    kv_heads: int  # G, key/value heads; N % G == 0
    head_width: int  # H
    mlp_width: int  # F
    max_positions: int  # the longest T that the model was trained for
    norm_epsilon: float
    tied_embeddings: bool  # the head is the transposed embedding
    rotary: Rotary | None  # None: learned position embeddings
    norm: str = "rms"  # a key of blocks.NORMS
    residual: str = "pre"  # a key of blocks.RESIDUALS: where the norms of a layer are
    activation: str = "silu"  # a key of blocks.ACTIVATIONS
    gated_mlp: bool = True  # down(act(gate x) · up x), else down(act(up x))
    biases: tuple[str, ...] = ()  # the projections that have one
    causal: bool = True
    attention: AttentionConfig = AttentionConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    logit_cap: float | None = None  # logits l become cap · tanh(l / cap)

    def __post_init__(self) -> None:
        for name in (
            "vocab_size width layers heads kv_heads head_width mlp_width max_positions norm_epsilon"
        ).split():
            if not getattr(self, name) > 0:
                raise UserError(f"model: {name} = {getattr(self, name)!r} must be positive")
        if self.heads % self.kv_heads:
            raise UserError(
                f"model: heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}"
            )
        if self.logit_cap is not None and not self.logit_cap > 0:
            raise UserError(f"model: logit_cap = {self.logit_cap} must be positive")
        unknown = [name for name in self.biases if name not in self.projections]
        if unknown:
            raise UserError(f"model: biases of {', '.join(unknown)}, which no layer has")
        self._check_attention()

    def _check_attention(self) -> None:
        local = self.attention.local
        for rotary in (self.rotary, local and local.rotary):
            if rotary and rotary.width > self.head_width:
                raise UserError(
                    f"model: {rotary.width} rotary features in a head of {self.head_width}"
                )
        if local is None:
            return
        if not self.causal:
            raise UserError("model: sliding windows are for attention to earlier tokens only")
        if local.rotary and (self.rotary is None or self.rotary.width != local.rotary.width):
            raise UserError("model: local layers must rotate as many features as the others")

    @property
    def projections(self) -> tuple[str, ...]:
        """The linear maps of a block, in order of use."""
        gate = ("gate_proj",) if self.gated_mlp else ()
        return (*ATTENTION_PROJECTIONS, *gate, "up_proj", "down_proj")

    @property
    def local_layers(self) -> np.ndarray:
        """bool[L], True for layers with a sliding window."""
        local = self.attention.local
        return np.resize(np.array([False] if local is None else local.pattern), self.layers)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that it can read."""
        scaling = self.rotary and self.rotary.scaling
        reach = scaling.factor if isinstance(scaling, DynamicScaling) else 1.0
        return int(self.max_positions * reach)

    @property
    def longest_alike(self) -> int:
        """Tokens of the longest text that it reads as the texts of a run are read, see `for_texts`.

        Scalings that depend on the length are made for the run's longest text, and change beyond
        ``original`` tokens: where no text of the run is that long, none may be.
        """
        scaling = self.rotary and self.rotary.scaling
        if not isinstance(scaling, DynamicScaling | LongRope):
            return self.longest
        if self.rotary.length <= scaling.original:
            return min(scaling.original, self.longest)
        return self.rotary.length if isinstance(scaling, DynamicScaling) else self.longest

    @property
    def reads_short_texts_as_long(self) -> bool:
        """Whether texts within ``original`` tokens are scaled as the run's longest text is."""
        scaling = self.rotary and self.rotary.scaling
        changes = isinstance(scaling, DynamicScaling | LongRope)
        return changes and self.rotary.length > scaling.original

    def rotary_of(self, local: bool) -> Rotary | None:
        """Return the rotary positions of local layers, or of the others."""
        own = self.attention.local.rotary if local and self.attention.local else None
        return own or self.rotary

    def for_texts(self, length: int) -> ModelConfig:
        """Return the architecture for a run whose longest text has ``length`` tokens.

        Only rotary scalings that depend on the length of a text differ.
        """
        scaling = self.rotary and self.rotary.scaling
        if not isinstance(scaling, DynamicScaling | LongRope):
            return self
        return dataclasses.replace(self, rotary=dataclasses.replace(self.rotary, length=length))


def period_of(layers: Sequence[bool]) -> tuple[bool, ...]:
    """Return the shortest pattern that, repeated, gives the kind of every layer."""
    sizes = range(1, len(layers) + 1)
    size = next(n for n in sizes if all(map(operator.eq, layers, layers[n:])))
    return tuple(layers[:size])


def differences(one: ModelConfig, other: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield what two architectures compute differently: (name, value of one, of the other).

    The family is not compared, and of rotary positions only the angles, in a short and in the
    longest text. A window that no text exceeds is none. Numbers may differ by a rounding to
    float32.
    """
    one, other = map(_within_texts, (one, other))
    for name, a, b in _fields("", one, other, one.longest):
        if name != "family" and name != "attention.local.pattern":
            yield name, a, b
    if one.local_layers.tolist() != other.local_layers.tolist():
        yield "attention.local", one.attention.local, other.attention.local


def _within_texts(config: ModelConfig) -> ModelConfig:
    """Return the architecture without a window that no text exceeds."""
    local = config.attention.local
    if local is None or local.rotary is not None or local.window < config.longest:
        return config
    attention = dataclasses.replace(config.attention, local=None)
    return dataclasses.replace(config, attention=attention)


def _fields(stem: str, one: Any, other: Any, longest: int) -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(one):
        a, b, name = getattr(one, field.name), getattr(other, field.name), stem + field.name
        if _same_plain(a, b):
            if not _turn_alike(a, b, longest):
                scalings = (None if x.scaling is None else type(x.scaling).__name__ for x in (a, b))
                yield f"{name}.scaling", *scalings
        elif dataclasses.is_dataclass(a) and type(a) is type(b):
            yield from _fields(f"{name}.", a, b, longest)
        elif isinstance(a, float) and isinstance(b, float):
            if not math.isclose(a, b, rel_tol=1e-6):
                yield name, a, b
        elif a != b:
            yield name, a, b


def _same_plain(one: Any, other: Any) -> bool:
    """Whether both are rotary positions that differ at most in their scaling."""
    if not isinstance(one, Rotary) or not isinstance(other, Rotary):
        return False
    return one.width == other.width and math.isclose(one.theta, other.theta, rel_tol=1e-6)


def _turn_alike(one: Rotary, other: Rotary, longest: int) -> bool:
    if not math.isclose(one.magnitude, other.magnitude, rel_tol=1e-6):
        return False
    for length in (0, longest):
        a, b = (dataclasses.replace(x, length=length).frequencies() for x in (one, other))
        if not np.allclose(a, b, rtol=1e-6, atol=0):
            return False
    return True
