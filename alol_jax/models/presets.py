"""The architectures of published models, and tiny ones for tests, by name."""

from __future__ import annotations

import dataclasses

from alol_jax.models.config import (
    UNGATED,
    AttentionConfig,
    EmbeddingConfig,
    Local,
    ModelConfig,
)
from alol_jax.models.rotary import Llama3Scaling, Rotary


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
        biases=UNGATED,
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
        residual="parallel",
    )


def _bert(width, layers, heads):
    """A BERT (Devlin et al. 2019, arXiv 1810.04805) of a given size."""
    return dataclasses.replace(
        _biased("bert", width, layers, heads),
        vocab_size=30_522,
        max_positions=512,
        norm_epsilon=1e-12,
        activation="gelu",
        residual="post",
        causal=False,
        embedding=EmbeddingConfig(token_types=2),
    )


def _roberta(width, layers, heads):
    """A RoBERTa (Liu et al. 2019, arXiv 1907.11692) of a given size."""
    return dataclasses.replace(
        _bert(width, layers, heads),
        family="roberta",
        vocab_size=50_265,
        norm_epsilon=1e-5,
        embedding=EmbeddingConfig(position_offset=2, token_types=1),
    )


def _mistral(width, layers, heads, mlp_width, *, kv_heads, window=None):
    """A Mistral (Jiang et al. 2023, arXiv 2310.06825) of a given size."""
    local = None if window is None else Local(window)
    return dataclasses.replace(
        _llama(width, layers, heads, mlp_width, kv_heads=kv_heads),
        family="mistral",
        max_positions=32_768,
        attention=AttentionConfig(local=local),
    )


def _qwen2(width, layers, heads, mlp_width, *, kv_heads, tied=False):
    """A Qwen2 or 2.5 (arXiv 2407.10671, 2412.15115) of a given size."""
    return dataclasses.replace(
        _llama(width, layers, heads, mlp_width, theta=1e6, kv_heads=kv_heads),
        family="qwen2",
        vocab_size=151_936,
        max_positions=32_768,
        norm_epsilon=1e-6,
        tied_embeddings=tied,
        biases=("q_proj", "k_proj", "v_proj"),
    )


def _qwen3(width, layers, heads, mlp_width, *, kv_heads, head_width=128, tied=False):
    """A Qwen3 (arXiv 2505.09388) of a given size."""
    return dataclasses.replace(
        _qwen2(width, layers, heads, mlp_width, kv_heads=kv_heads, tied=tied),
        family="qwen3",
        max_positions=40_960,
        head_width=head_width,
        rotary=Rotary(1e6, head_width),
        biases=(),
        attention=AttentionConfig(query_key_norm="head"),
    )


def _gemma2(width, layers, heads, mlp_width, *, kv_heads, head_width=256, window=4096):
    """A Gemma 2 (arXiv 2408.00118) of a given size."""
    return dataclasses.replace(
        _llama(width, layers, heads, mlp_width, kv_heads=kv_heads),
        family="gemma2",
        vocab_size=256_000,
        head_width=head_width,
        max_positions=8192,
        norm_epsilon=1e-6,
        tied_embeddings=True,
        rotary=Rotary(1e4, head_width),
        norm="rms_plus_one",
        residual="around",
        activation="gelu_tanh",
        attention=AttentionConfig(
            local=Local(window, (True, False)), scale=head_width**-0.5, cap=50.0
        ),
        embedding=EmbeddingConfig(scaled=True),
        logit_cap=30.0,
    )


def _gemma3(width, layers, heads, mlp_width, *, kv_heads, head_width=256, window=512):
    """The text model of a Gemma 3 (arXiv 2503.19786) of a given size."""
    local = Local(window, (True,) * 5 + (False,), Rotary(1e4, head_width))
    return dataclasses.replace(
        _gemma2(width, layers, heads, mlp_width, kv_heads=kv_heads, head_width=head_width),
        family="gemma3_text",
        vocab_size=262_144,
        max_positions=32_768,
        rotary=Rotary(1e6, head_width),
        attention=AttentionConfig("head", local, scale=head_width**-0.5),
        logit_cap=None,
    )


def _phi3(width, layers, heads, mlp_width, *, kv_heads=None, window=None):
    """A Phi-3 (arXiv 2404.14219) of a given size."""
    local = None if window is None else Local(window)
    return dataclasses.replace(
        _llama(width, layers, heads, mlp_width, kv_heads=kv_heads),
        family="phi3",
        vocab_size=32_064,
        max_positions=4096,
        attention=AttentionConfig(local=local),
    )


def _olmo2(width, layers, heads, mlp_width, *, kv_heads=None):
    """An OLMo 2 (arXiv 2501.00656) of a given size."""
    return dataclasses.replace(
        _llama(width, layers, heads, mlp_width, theta=5e5, kv_heads=kv_heads),
        family="olmo2",
        vocab_size=100_352,
        max_positions=4096,
        norm_epsilon=1e-6,
        residual="after",
        attention=AttentionConfig(query_key_norm="all"),
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
    "mistral-tiny": dataclasses.replace(_mistral(64, 2, 4, 128, kv_heads=2, window=24), **_TINY),
    "qwen2-tiny": dataclasses.replace(_qwen2(64, 2, 4, 128, kv_heads=2, tied=True), **_TINY),
    "qwen3-tiny": dataclasses.replace(
        _qwen3(64, 2, 4, 128, kv_heads=2, head_width=32, tied=True), **_TINY
    ),
    "gemma2-tiny": dataclasses.replace(
        _gemma2(64, 2, 4, 128, kv_heads=2, head_width=32, window=24), **_TINY
    ),
    "gemma3-tiny": dataclasses.replace(
        _gemma3(64, 7, 4, 128, kv_heads=1, head_width=32, window=24), **_TINY
    ),
    "phi3-tiny": dataclasses.replace(_phi3(64, 2, 4, 128, kv_heads=2, window=24), **_TINY),
    "olmo2-tiny": dataclasses.replace(_olmo2(64, 2, 4, 128), **_TINY),
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
    "mistral-7b-v0.1": _mistral(4096, 32, 32, 14_336, kv_heads=8, window=4096),
    "mistral-7b-v0.3": dataclasses.replace(
        _mistral(4096, 32, 32, 14_336, kv_heads=8),
        vocab_size=32_768,
        rotary=Rotary(1e6, 128),
    ),
    "qwen2.5-0.5b": _qwen2(896, 24, 14, 4864, kv_heads=2, tied=True),
    "qwen2.5-1.5b": _qwen2(1536, 28, 12, 8960, kv_heads=2, tied=True),
    "qwen2.5-7b": dataclasses.replace(_qwen2(3584, 28, 28, 18_944, kv_heads=4), vocab_size=152_064),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, kv_heads=8, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, kv_heads=8, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12_288, kv_heads=8),
    "gemma-2-2b": _gemma2(2304, 26, 8, 9216, kv_heads=4),
    "gemma-3-1b": _gemma3(1152, 26, 4, 6912, kv_heads=1),
    "phi-3-mini-4k": _phi3(3072, 32, 32, 8192, window=2047),
    "olmo-2-1b": _olmo2(2048, 16, 16, 8192),
    "olmo-2-7b": _olmo2(4096, 32, 32, 11_008),
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
