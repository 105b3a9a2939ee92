"""Presets, validation, and which config.json files are understood."""

import dataclasses

import pytest

from alol_jax.models.config import PRESETS, from_hf
from alol_jax.types import UserError

SMOLLM2 = {  # as transformers 4.48 writes it
    "_name_or_path": "HuggingFaceTB/SmolLM2-135M",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.48.0",
    "use_cache": True,
    "vocab_size": 49152,
}

FIRST_LLAMA = {  # as transformers 4.28 wrote it: several fields did not exist yet
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": -1,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": 32000,
}


def test_smollm2_as_transformers_4_writes_it_is_the_preset():
    assert from_hf(SMOLLM2, "config.json") == PRESETS["smollm2-135m"]


def test_smollm2_as_transformers_5_writes_it_is_the_preset():
    fields = {k: v for k, v in SMOLLM2.items() if k not in ("rope_theta", "rope_scaling")}
    fields["rope_parameters"] = {"rope_theta": 100000.0, "rope_type": "default"}
    fields["dtype"] = fields.pop("torch_dtype")
    assert from_hf(fields, "config.json") == PRESETS["smollm2-135m"]


def test_fields_that_old_files_lack_have_the_documented_defaults():
    config = from_hf(FIRST_LLAMA, "config.json")
    assert config.kv_heads == 32
    assert config.head_width == 128
    assert config.rope_theta == 10_000.0
    assert not config.tied_embeddings


def test_installed_transformers_writes_files_that_are_understood():
    from transformers import LlamaConfig

    written = LlamaConfig(architectures=["LlamaForCausalLM"]).to_dict()
    assert from_hf(written, "config.json").width == 4096


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_type", "mistral"),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("attention_dropout", 0.1),
        ("rope_interleaved", True),
        ("partial_rotary_factor", 0.5),
        ("sliding_window", 4096),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 32.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("auto_map", {"AutoModelForCausalLM": "modeling.Mine"}),
        ("logit_scale", 0.5),
    ],
)
def test_a_field_with_other_mathematics_or_of_unknown_meaning_is_named(field, value):
    with pytest.raises(UserError) as error:
        from_hf({**FIRST_LLAMA, field: value}, "somewhere/config.json")
    assert f"somewhere/config.json: {field} = " in str(error.value).replace("unknown field ", "")
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "rms_norm_eps", "model_type"])
def test_a_missing_field_is_named(field):
    fields = {k: v for k, v in FIRST_LLAMA.items() if k != field}
    with pytest.raises(UserError, match=f"config.json: {field}"):
        from_hf(fields, "config.json")


@pytest.mark.parametrize("value", ["576", 5.5, True, None])
def test_a_size_that_is_no_whole_number_is_named(value):
    with pytest.raises(UserError, match="hidden_size must be a whole number"):
        from_hf({**FIRST_LLAMA, "hidden_size": value}, "config.json")


def test_two_rotary_bases_that_differ_are_an_error():
    rope = {"rope_type": "default", "rope_theta": 20_000.0}
    with pytest.raises(UserError, match="rope_theta is stated twice"):
        from_hf({**SMOLLM2, "rope_parameters": rope}, "config.json")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"kv_heads": 3}, "kv_heads = 3"),
        ({"head_width": 15}, "head_width = 15"),
        ({"layers": 0}, "layers = 0"),
        ({"norm_epsilon": 0.0}, "norm_epsilon = 0.0"),
    ],
)
def test_an_impossible_shape_is_named(change, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(PRESETS["llama-tiny"], **change)
