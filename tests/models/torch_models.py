"""Random models of transformers, tiny, with every choice of a family switched on somewhere."""

from alol_jax.models.files.convert import open_checkpoint
from tests.models.tiny_llama import here

SIZES = {"vocab_size": 53, "initializer_range": 0.15}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _llama(**changes):
    from transformers import LlamaConfig

    fields = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**SIZES, **fields | changes)


def _kin(kind, **changes):
    """A relative of Llama; heads of another width than width / heads."""
    import transformers

    fields = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return getattr(transformers, kind)(**SIZES, **fields | changes)


def _gpt_neox(**changes):
    from transformers import GPTNeoXConfig

    fields = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 64,
    }
    return GPTNeoXConfig(**SIZES, **fields | changes)


def _gpt2(**changes):
    from transformers import GPT2Config

    fields = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
    return GPT2Config(**SIZES, **fields | changes)


def _encoder(kind, **changes):
    import transformers

    fields = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    return getattr(transformers, kind)(**SIZES, **fields | changes)


def _bert(**changes):
    return _encoder("BertConfig", max_position_embeddings=64, **changes)


def _roberta(**changes):
    fields = {"max_position_embeddings": 66, "type_vocab_size": 1}
    return _encoder("RobertaConfig", **fields | changes)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_GIVEN = YARN | {
    "beta_fast": 4,
    "beta_slow": 2,
    "truncate": False,
    "mscale": 0.7,
    "mscale_all_dim": 0.2,
}
SHORT, LONG = [1.0, 1.1, 1.5, 2.0, 3.0], [1.0, 2.0, 4.0, 6.0, 8.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 32,
}
LOCAL, WHOLE = "sliding_attention", "full_attention"

CAUSAL = {
    "llama: grouped heads of another width, untied": lambda: _llama(
        num_key_value_heads=2,
        head_dim=10,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "llama: full heads, tied, long rotary wavelengths": lambda: _llama(
        num_key_value_heads=4,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "llama: rope scaled as llama 3.1's": lambda: _llama(rope_parameters=LLAMA3),
    "llama: rope scaled linearly": lambda: _llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
    ),
    "llama: biases everywhere": lambda: _llama(attention_bias=True, mlp_bias=True),
    "llama: rope scaled by yarn": lambda: _llama(rope_parameters=YARN),
    "llama: rope scaled by yarn, magnitude and range given": lambda: _llama(
        rope_parameters=YARN
        | {"beta_fast": 4, "beta_slow": 2, "truncate": False, "mscale": 0.7, "mscale_all_dim": 0.2}
    ),
    "llama: dynamic rope, text within the positions": lambda: _llama(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    ),
    "mistral: a window": lambda: _kin("MistralConfig", head_dim=10, sliding_window=5),
    "mistral: no window": lambda: _kin("MistralConfig", sliding_window=None),
    "qwen2": lambda: _kin("Qwen2Config", tie_word_embeddings=True),
    "qwen2: windows from the second layer on, yarn": lambda: _kin(
        "Qwen2Config",
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        rope_parameters=YARN,
    ),
    "qwen3": lambda: _kin("Qwen3Config", head_dim=10),
    "qwen3: biases, one local layer": lambda: _kin(
        "Qwen3Config",
        head_dim=16,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=3,
        layer_types=[WHOLE, LOCAL, WHOLE],
        tie_word_embeddings=True,
    ),
    "gemma2": lambda: _kin(
        "Gemma2Config",
        head_dim=10,
        sliding_window=4,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma2: biases, no caps, untied": lambda: _kin(
        "Gemma2Config",
        head_dim=10,
        attention_bias=True,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        tie_word_embeddings=False,
    ),
    "gemma3: two local layers to one": lambda: _kin(
        "Gemma3TextConfig",
        head_dim=10,
        sliding_window=4,
        layer_types=[LOCAL, LOCAL, WHOLE],
        rope_parameters={
            WHOLE: {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
            LOCAL: {"rope_type": "default", "rope_theta": 1e2},
        },
    ),
    "gemma3: capped logits, biases": lambda: _kin(
        "Gemma3TextConfig", head_dim=16, attention_bias=True, final_logit_softcapping=3.0
    ),
    "phi3: fused, a window": lambda: _kin("Phi3Config", sliding_window=5),
    "phi3: fused, full heads, longrope": lambda: _kin(
        "Phi3Config",
        num_key_value_heads=4,
        rope_parameters=LONGROPE | {"partial_rotary_factor": 10 / 12},
        original_max_position_embeddings=32,
    ),
    "olmo2": lambda: _kin("Olmo2Config"),
    "olmo2: full heads, biases, tied": lambda: _kin(
        "Olmo2Config", num_key_value_heads=4, attention_bias=True, tie_word_embeddings=True
    ),
    "gpt_neox: parallel, a quarter of a head turns": lambda: _gpt_neox(
        rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.25}
    ),
    "gpt_neox: sequential, whole heads turn, tanh gelu": lambda: _gpt_neox(
        use_parallel_residual=False,
        hidden_act="gelu_new",
        rope_parameters={"rope_theta": 5e3, "partial_rotary_factor": 1.0},
    ),
    "gpt2: tied": lambda: _gpt2(),
    "gpt2: untied, another mlp width, exact gelu": lambda: _gpt2(
        tie_word_embeddings=False, n_inner=70, activation_function="gelu"
    ),
}
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 2}
FOUR_BIT = {  # as wide as blocks of 64 weights need
    "llama": lambda: _kin("LlamaConfig", **WIDE, attention_bias=True),
    "mistral": lambda: _kin("MistralConfig", **WIDE, sliding_window=5),
    "qwen2": lambda: _kin("Qwen2Config", **WIDE),
    "qwen3": lambda: _kin("Qwen3Config", **WIDE),
    "gemma2": lambda: _kin("Gemma2Config", **WIDE, sliding_window=5),
    "gemma3": lambda: _kin("Gemma3TextConfig", **WIDE, layer_types=[LOCAL, WHOLE]),
    "phi3": lambda: _kin("Phi3Config", **WIDE | {"num_key_value_heads": 4}),
    "olmo2": lambda: _kin("Olmo2Config", **WIDE),
    "gpt_neox": lambda: _gpt_neox(hidden_size=128, intermediate_size=256, num_attention_heads=4),
}
ENCODERS = {
    "bert: two segments": lambda: _bert(),
    "bert: one segment, tanh gelu": lambda: _bert(type_vocab_size=1, hidden_act="gelu_new"),
    "roberta: one segment": lambda: _roberta(),
    "roberta: two segments, tanh gelu, another padding id": lambda: _roberta(
        type_vocab_size=2, hidden_act="gelu_new", pad_token_id=4, max_position_embeddings=69
    ),
}


def random_torch(config, make):
    """The model of a config with norms and biases that are not all ones and zeros."""
    import torch

    torch.manual_seed(0)
    config._attn_implementation = "eager"  # the others know no soft caps
    model = make(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower() or "ln_" in name or name.endswith(".bias"):
                around = 0.0 if name.endswith("bias") or "gemma" in config.model_type else 1.0
                weight.uniform_(around - 0.5, around + 0.5)
    return model


def saved_and_opened(model, folder):
    """What our reader makes of the files that the model saves: the checkpoint and parameters."""
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    return checkpoint, checkpoint.load("float32", here)
