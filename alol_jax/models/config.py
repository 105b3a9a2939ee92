"""Model architectures: `ModelConfig`, the list of all supported choices, and the presets.

Llama, GPT-NeoX, GPT-2, BERT and RoBERTa are the same transformer with different values.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from alol_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by ``factor`` (position interpolation, arXiv 2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise UserError(f"model: rotary scaling by factor {self.factor} must be above 0")

    def __call__(self, frequency: np.ndarray) -> np.ndarray:
        return frequency / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The rotary scaling of Llama 3.1.

    Wavelengths longer than ``original / low`` positions are stretched by ``factor``, those shorter
    than ``original / high`` are kept, and those between are interpolated.
    """

    factor: float
    low: float
    high: float
    original: int  # number of positions in pre-training

    def __post_init__(self) -> None:
        if not (self.factor > 0 and 0 < self.low < self.high and self.original > 0):
            raise UserError(f"model: {self} needs positive numbers and low < high")

    def __call__(self, frequency: np.ndarray) -> np.ndarray:
        turns = self.original * frequency / (2 * np.pi)
        share = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return share * frequency + (1 - share) * frequency / self.factor


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary embeddings (Su et al. 2021, halves layout) of the first ``width`` features of a head.

    Raises:
      UserError: ``width`` is odd or not positive, or ``theta`` is not positive.
    """

    theta: float  # base of the wavelengths
    width: int  # rotated features of a head; the others are left unchanged
    scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise UserError(f"model: rotary embeddings need an even head_width, not {self.width}")
        if not self.theta > 0:
            raise UserError(f"model: rotary theta = {self.theta} must be positive")

    def frequencies(self) -> np.ndarray:
        """f32[width / 2], radians per position."""
        exponent = np.arange(0, self.width, 2, dtype=np.float64) / self.width
        plain = self.theta**-exponent
        return np.float32(plain if self.scaling is None else self.scaling(plain))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of a model.

    Raises:
      UserError: a size is not positive, ``heads`` is not a multiple of ``kv_heads``, a head has
        fewer features than ``rotary`` rotates, or both ``post_norm`` and ``parallel_residual`` are
        set.
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
    activation: str = "silu"  # a key of blocks.ACTIVATIONS
    gated_mlp: bool = True  # down(act(gate x) · up x), else down(act(up x))
    biases: bool = False  # on every projection of a block
    parallel_residual: bool = False  # attention and MLP read the same x
    post_norm: bool = False  # norms after each residual sum and the embeddings; no final norm
    causal: bool = True
    position_offset: int = 0  # row of the first position's embedding
    token_types: int = 0  # rows of the token-type embedding, added to the tokens

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
        if self.rotary is not None and self.rotary.width > self.head_width:
            raise UserError(
                f"model: {self.rotary.width} rotary features in a head of {self.head_width}"
            )
        if self.post_norm and self.parallel_residual:
            raise UserError("model: a parallel residual cannot be combined with post-norms")

    @property
    def projections(self) -> tuple[str, ...]:
        """The linear maps of a block, in order of use."""
        gate = ("gate_proj",) if self.gated_mlp else ()
        return ("q_proj", "k_proj", "v_proj", "o_proj", *gate, "up_proj", "down_proj")


def _llama(width, layers, heads, mlp_width, *, theta=1e4, scaling=None, kv_heads=None):
    """A Llama (Touvron et al. 2023, arXiv 2302.13971) of a given size."""
    head_width = width // heads
    return ModelConfig(
        family="llama",
        vocab_size=32_000,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads or heads,
        head_width=head_width,
        mlp_width=mlp_width,
        max_positions=2048,
        norm_epsilon=1e-5,
        tied_embeddings=False,
        rotary=Rotary(theta, head_width, scaling),
    )


def _biased(family, width, layers, heads):
    """What GPT-2, GPT-NeoX, BERT and RoBERTa share, with the positions and activation of GPT-2."""
    return ModelConfig(
        family=family,
        vocab_size=50_257,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        mlp_width=4 * width,
        max_positions=1024,
        norm_epsilon=1e-5,
        tied_embeddings=True,
        rotary=None,
        norm="layer",
        activation="gelu_tanh",
        gated_mlp=False,
        biases=True,
    )


def _gpt2(width, layers, heads):
    """A GPT-2 (Radford et al. 2019) of a given size."""
    return _biased("gpt2", width, layers, heads)


def _gpt_neox(width, layers, heads):
    """A Pythia (Biderman et al. 2023, arXiv 2304.01373) of a given size."""
    return dataclasses.replace(
        _biased("gpt_neox", width, layers, heads),
        vocab_size=50_304,
        max_positions=2048,
        tied_embeddings=False,
        rotary=Rotary(1e4, width // heads // 4),
        activation="gelu",
        parallel_residual=True,
    )


def _bert(width, layers, heads):
    """A BERT (Devlin et al. 2019, arXiv 1810.04805) of a given size."""
    return dataclasses.replace(
        _biased("bert", width, layers, heads),
        vocab_size=30_522,
        max_positions=512,
        norm_epsilon=1e-12,
        activation="gelu",
        post_norm=True,
        causal=False,
        token_types=2,
    )


def _roberta(width, layers, heads):
    """A RoBERTa (Liu et al. 2019, arXiv 1907.11692) of a given size."""
    return dataclasses.replace(
        _bert(width, layers, heads),
        family="roberta",
        vocab_size=50_265,
        norm_epsilon=1e-5,
        position_offset=2,
        token_types=1,
    )


_LLAMA_3_1 = Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=8192)
_LLAMA_3_2 = dataclasses.replace(_LLAMA_3_1, factor=32.0)
_TINY = {"vocab_size": 264, "max_positions": 1024}  # fits the 259 ids of `byte_level`

PRESETS: dict[str, ModelConfig] = {
    # for debug runs and tests
    "llama-tiny": dataclasses.replace(
        _llama(64, 2, 4, 128, kv_heads=2), tied_embeddings=True, **_TINY
    ),
    "gpt-neox-tiny": dataclasses.replace(_gpt_neox(64, 2, 4), **_TINY),
    "gpt2-tiny": dataclasses.replace(_gpt2(64, 2, 4), **_TINY),
    "smollm2-135m": dataclasses.replace(
        _llama(576, 30, 9, 1536, theta=1e5, kv_heads=3),
        vocab_size=49_152,
        max_positions=8192,
        tied_embeddings=True,
    ),
    "tinyllama-1.1b": _llama(2048, 22, 32, 5632, kv_heads=4),
    "llama-7b": dataclasses.replace(_llama(4096, 32, 32, 11_008), norm_epsilon=1e-6),
    "llama-13b": dataclasses.replace(_llama(5120, 40, 40, 13_824), norm_epsilon=1e-6),
    "llama-65b": _llama(8192, 80, 64, 22_016),
    "llama-2-7b": dataclasses.replace(_llama(4096, 32, 32, 11_008), max_positions=4096),
    "llama-3.1-8b": dataclasses.replace(
        _llama(4096, 32, 32, 14_336, theta=5e5, kv_heads=8, scaling=_LLAMA_3_1),
        vocab_size=128_256,
        max_positions=131_072,
    ),
    "llama-3.2-1b": dataclasses.replace(
        _llama(2048, 16, 32, 8192, theta=5e5, kv_heads=8, scaling=_LLAMA_3_2),
        vocab_size=128_256,
        max_positions=131_072,
        tied_embeddings=True,
    ),
    "pythia-160m": _gpt_neox(768, 12, 12),
    "pythia-1.4b": _gpt_neox(2048, 24, 16),
    "pythia-6.9b": dataclasses.replace(_gpt_neox(4096, 32, 32), vocab_size=50_432),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),  # DialoGPT-medium too
    "gpt2-xl": _gpt2(1600, 48, 25),
    "minilm-l6": _bert(384, 6, 12),  # Wang et al. 2020, arXiv 2002.10957
    "bert-base": _bert(768, 12, 12),
    "roberta-base": _roberta(768, 12, 12),
    "roberta-large": _roberta(1024, 24, 16),
}
