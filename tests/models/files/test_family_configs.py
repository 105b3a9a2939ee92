"""The config.json of Llama's kin: published files, windows, rope scalings, and what is refused."""

import pytest

from alol_jax.errors import UserError
from alol_jax.models.config import Local
from alol_jax.models.files.hf_config import from_hf, to_hf
from alol_jax.models.presets import PRESETS
from alol_jax.models.rotary import DynamicScaling, LongRope, Rotary, YarnScaling

SHARED = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
}
MISTRAL = SHARED | {  # Mistral-7B-v0.1
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN2 = SHARED | {  # Qwen2.5-0.5B-Instruct
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = QWEN2 | {  # Qwen3-0.6B
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}
GEMMA2 = SHARED | {  # gemma-2-2b-it
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA3 = {  # gemma-3-1b-it
    **{key: value for key, value in GEMMA2.items() if key != "hidden_act"},
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
PHI3 = SHARED | {  # Phi-3-mini-4k-instruct
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
OLMO2 = SHARED | {  # OLMo-2-1124-7B
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
PUBLISHED = {
    "mistral-7b-v0.1": MISTRAL,
    "qwen2.5-0.5b": QWEN2,
    "qwen3-0.6b": QWEN3,
    "gemma-2-2b": GEMMA2,
    "gemma-3-1b": GEMMA3,
    "phi-3-mini-4k": PHI3,
    "olmo-2-7b": OLMO2,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_the_preset(name):
    assert from_hf(PUBLISHED[name], "config.json") == PRESETS[name]


def test_gemma_3_as_transformers_5_writes_it_is_the_preset():
    old = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
    fields = {key: value for key, value in GEMMA3.items() if key not in old}
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    fields["layer_types"] = (5 * kinds)[:26]
    fields["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert from_hf(fields, "config.json") == PRESETS["gemma-3-1b"]


def test_a_window_of_some_layers_is_read_from_either_field():
    used = QWEN2 | {"use_sliding_window": True, "sliding_window": 100}
    expected = Local(100, (False,) * 21 + (True,) * 3)
    assert from_hf(used, "c").attention.local == expected
    kinds = ["full_attention"] * 21 + ["sliding_attention"] * 3
    assert from_hf(used | {"layer_types": kinds}, "c").attention.local == expected
    alternating = ["sliding_attention", "full_attention"] * 12
    found = from_hf(used | {"layer_types": alternating}, "c").attention.local
    assert found == Local(100, (True, False))


def test_no_window_is_null_and_a_missing_one_is_that_of_transformers():
    assert from_hf(MISTRAL | {"sliding_window": None}, "c").attention.local is None
    fields = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    assert from_hf(fields, "c").attention.local == Local(4096)
    assert from_hf(QWEN2, "c").attention.local is None  # use_sliding_window is false


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("fields", "scaling", "expected"),
    [
        (QWEN2, YARN, YarnScaling(4.0, 32768, magnitude=1.1386294361119891)),
        (QWEN2, YARN | {"attention_factor": 1.0}, YarnScaling(4.0, 32768)),
        (MISTRAL, {"type": "dynamic", "factor": 2.0}, DynamicScaling(2.0, 32768)),
    ],
)
def test_rope_scalings_are_read_and_written(fields, scaling, expected):
    config = from_hf(fields | {"rope_scaling": scaling}, "c")
    assert config.rotary == Rotary(config.rotary.theta, config.head_width, expected)
    assert from_hf(to_hf(config), "c") == config


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_longrope_of_phi_3_takes_its_magnitude_from_the_lengths(kind):
    short, long = [1.0] * 48, [float(n + 1) for n in range(48)]
    scaling = {"type": kind, "short_factor": short, "long_factor": long}
    config = from_hf(PHI3 | {"max_position_embeddings": 131072, "rope_scaling": scaling}, "c")
    found = config.rotary.scaling
    assert isinstance(found, LongRope) and found.original == 4096
    assert found.magnitude == pytest.approx((1 + 5 / 12) ** 0.5)  # log 32 / log 4096
    brief, whole = (config.for_texts(n).rotary.frequencies() for n in (4096, 4097))
    assert (whole / brief).tolist() == pytest.approx([1 / x for x in long])
    assert from_hf(to_hf(config), "c") == config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (GEMMA3 | {"vision_config": {"hidden_size": 4}}, "vision_config is there, so this is a"),
        (QWEN3 | {"num_experts": 128}, "num_experts is there, so this is a mixture of experts"),
        (QWEN3 | {"layer_types": ["chunked_attention"] * 28}, "layer_types = "),
        (QWEN3 | {"layer_types": ["full_attention"]}, "names 1 layers, but there are 28"),
        (QWEN3 | {"layer_types": ["sliding_attention"] * 28}, "but no sliding_window"),
        (GEMMA2 | {"sliding_window": None}, "but no sliding_window"),
        (GEMMA2 | {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        (GEMMA2 | {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        (GEMMA2 | {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping must be above 0"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        (GEMMA3 | {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters = "),
        (
            GEMMA3 | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "rope_theta is stated twice",
        ),
        (MISTRAL | {"layer_types": ["full_attention"] * 32}, "layer_types = "),
        (MISTRAL | {"sliding_window": 0}, "a sliding window of 0 must be positive"),
        (OLMO2 | {"sliding_window": 4096}, "sliding_window = 4096"),
        (QWEN2 | {"attention_sinks": True}, "unknown field attention_sinks = True"),
        (QWEN2 | {"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor must be a number"),
        (PHI3 | {"interpolate_factor": 2}, "interpolate_factor = 2"),
        (PHI3 | {"rope_scaling": {"type": "su", "short_factor": 1.0}}, "short_factor must be"),
        (
            PHI3 | {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}},
            "longrope needs 48 positive factors",
        ),
    ],
)
def test_a_variant_that_is_not_implemented_is_one_line(fields, said):
    with pytest.raises(UserError) as error:
        from_hf(fields, "config.json")
    assert said in str(error.value) and "\n" not in str(error.value)
