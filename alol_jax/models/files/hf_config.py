"""Hugging Face config.json <-> ModelConfig, for the four families.

Unsupported means error: a field that changes the computation and is not implemented, or that is
unknown here, raises UserError, because an almost correct model is a wrong model. Dropout rates are
ignored: only adapters have dropout, so that the importance ratio of a policy that equals its
reference is exactly 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from alol_jax.models.config import ModelConfig
from alol_jax.models.files.hf_fields import ACTIVATIONS, ROPE, Fields, read_rotary, rope_parameters
from alol_jax.types import UserError

# Fields that do not change the forward pass: provenance, initialisation, storage, tensor slicing,
# return values, dropout, and generation settings of old versions.
_IGNORED = frozenset(
    "architectures transformers_version _name_or_path _commit_hash torch_dtype dtype torchscript "
    "use_bfloat16 initializer_range use_cache pretraining_tp chunk_size_feed_forward "
    "is_llama_config attn_implementation _attn_implementation _attn_implementation_autoset "
    "_flash_attn_2_enabled gradient_checkpointing max_sequence_length transformers.js_config "
    "unsloth_version unsloth_fixed tf_legacy_loss model_type id2label label2id num_labels pooling "
    "bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id "
    "tokenizer_class prefix output_attentions output_hidden_states output_scores return_dict "
    "return_dict_in_generate problem_type finetuning_task output_past "
    "task_specific_params cross_attention_hidden_size tie_encoder_decoder "
    "temperature top_k top_p typical_p repetition_penalty length_penalty diversity_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
    "num_beams num_beam_groups do_sample early_stopping max_length min_length forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens attention_dropout hidden_dropout classifier_dropout resid_pdrop "
    "embd_pdrop attn_pdrop hidden_dropout_prob attention_probs_dropout_prob n_ctx vocab_size_lm "
    "summary_type summary_use_proj summary_activation summary_proj_to_labels "
    "summary_first_dropout reorder_and_upcast_attn".split()
)

# Fields of any family that change the computation -> the implemented values.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "auto_map": (None,),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family's config.json is read and written.

    Attributes:
        reads: the fields that ``read`` uses.
        implemented: other fields that change the computation -> the implemented values.
        read: config.json -> ModelConfig.
        write: ModelConfig -> the fields of config.json.
    """

    reads: frozenset[str]
    implemented: dict[str, tuple[Any, ...]]
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]


def from_hf(config_json: dict[str, Any], where: str) -> ModelConfig:
    """Convert a Hugging Face config.json (transformers 4 or 5) to a ModelConfig.

    Fields that transformers may omit have its documented defaults.

    Args:
      config_json: the parsed file.
      where: the name of the file in errors.

    Raises:
      UserError: a field is missing or unknown, has the wrong type, or needs a computation that is
        not implemented.
    """
    kind = config_json.get("model_type")
    if kind is None:
        raise UserError(f"{where}: model_type is missing: is this a model's config.json?")
    fields = Fields(config_json, where)
    if kind not in FAMILIES:
        raise fields.unimplemented("model_type", kind, ", ".join(FAMILIES))
    family = FAMILIES[kind]
    implemented = _IMPLEMENTED | family.implemented
    for key, value in config_json.items():
        if key in implemented and value not in implemented[key]:
            raise fields.unimplemented(key, value, repr(implemented[key][0]))
        if key not in family.reads and key not in implemented and key not in _IGNORED:
            raise UserError(
                f"{where}: unknown field {key} = {value!r}, which may change the computation: "
                "remove it from the file if it does not"
            )
    return family.read(fields)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Convert ``config`` to the fields of config.json, without ``architectures``."""
    return {"model_type": config.family} | FAMILIES[config.family].write(config)


# ------------------------------------------------------------------ the families


def _sizes(fields: Fields, width: int, heads: int) -> dict[str, int]:
    return {
        "vocab_size": fields.size("vocab_size"),
        "width": width,
        "heads": heads,
        "kv_heads": heads,
        "head_width": width // max(heads, 1),
    }


def _read_llama(fields: Fields) -> ModelConfig:
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_width = fields.size("head_dim", width // max(heads, 1))
    grouped = {"kv_heads": fields.size("num_key_value_heads", heads), "head_width": head_width}
    rotary = read_rotary(fields, head_width, share=1.0)
    if rotary.width != head_width:
        key = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
        raise fields.unimplemented(key, fields.values[key], "partial_rotary_factor 1.0")
    return ModelConfig(
        family="llama",
        **_sizes(fields, width, heads) | grouped,
        layers=fields.size("num_hidden_layers"),
        mlp_width=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings"),
        norm_epsilon=fields.number("rms_norm_eps"),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        rotary=rotary,
    )


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": rope_parameters(config.rotary),
    }


def _read_gpt_neox(fields: Fields) -> ModelConfig:
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return ModelConfig(
        family="gpt_neox",
        **_sizes(fields, width, heads),
        layers=fields.size("num_hidden_layers"),
        mlp_width=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings"),
        norm_epsilon=fields.number("layer_norm_eps"),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        rotary=read_rotary(fields, width // max(heads, 1), share=0.25),
        norm="layer",
        activation=fields.one_of("hidden_act", ACTIVATIONS, "gelu"),
        gated_mlp=False,
        biases=True,
        parallel_residual=fields.flag("use_parallel_residual", True),
    )


def _write_gpt_neox(config: ModelConfig) -> dict[str, Any]:
    share = config.rotary.width / config.head_width
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": _hf_activation(config),
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": rope_parameters(config.rotary) | {"partial_rotary_factor": share},
    }


def _read_gpt2(fields: Fields) -> ModelConfig:
    width, heads = fields.size("n_embd"), fields.size("n_head")
    return ModelConfig(
        family="gpt2",
        **_sizes(fields, width, heads),
        layers=fields.size("n_layer"),
        mlp_width=fields.size("n_inner", 4 * width),
        max_positions=fields.size("n_positions", fields.values.get("n_ctx")),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        rotary=None,
        norm="layer",
        activation=fields.one_of("activation_function", ACTIVATIONS, "gelu_new"),
        gated_mlp=False,
        biases=True,
    )


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": _hf_activation(config),
        "tie_word_embeddings": config.tied_embeddings,
    }


def _read_roberta(fields: Fields) -> ModelConfig:
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    offset = fields.size("pad_token_id", 1) + 1  # positions start after the padding id
    return ModelConfig(
        family="roberta",
        **_sizes(fields, width, heads),
        layers=fields.size("num_hidden_layers"),
        mlp_width=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings") - offset,
        norm_epsilon=fields.number("layer_norm_eps", 1e-12),
        tied_embeddings=True,  # an encoder is used without a head
        rotary=None,
        norm="layer",
        activation=fields.one_of("hidden_act", ACTIVATIONS, "gelu"),
        gated_mlp=False,
        biases=True,
        post_norm=True,
        causal=False,
        position_offset=offset,
        token_types=fields.size("type_vocab_size", 2),
    )


def _write_roberta(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions + config.position_offset,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": _hf_activation(config),
        "type_vocab_size": config.token_types,
        "pad_token_id": config.position_offset - 1,
    }


def _hf_activation(config: ModelConfig) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)


_SIZES = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "max_position_embeddings tie_word_embeddings".split()
)
_GPT_NEOX = Family(
    reads=_SIZES | ROPE | {"layer_norm_eps", "hidden_act", "use_parallel_residual"},
    implemented={"attention_bias": (True, None)},
    read=_read_gpt_neox,
    write=_write_gpt_neox,
)

FAMILIES: dict[str, Family] = {
    "llama": Family(
        reads=_SIZES | ROPE | {"num_key_value_heads", "head_dim", "rms_norm_eps"},
        implemented={
            "hidden_act": ("silu",),
            "attention_bias": (False, None),
            "mlp_bias": (False, None),
            "rope_interleaved": (False, None),
            "partial_rotary_factor": (1.0, None),
            "sliding_window": (None,),
            "use_sliding_window": (False, None),
            "layer_types": (None,),
        },
        read=_read_llama,
        write=_write_llama,
    ),
    "gpt_neox": _GPT_NEOX,
    "gpt_neox_reward_model": _GPT_NEOX,
    "gpt2": Family(
        reads=frozenset(
            "vocab_size n_embd n_layer n_head n_inner n_positions layer_norm_epsilon "
            "activation_function tie_word_embeddings".split()
        ),
        implemented={
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": (False, None),
        },
        read=_read_gpt2,
        write=_write_gpt2,
    ),
    "roberta": Family(
        reads=_SIZES | {"layer_norm_eps", "hidden_act", "type_vocab_size"},
        implemented={"position_embedding_type": ("absolute", None)},
        read=_read_roberta,
        write=_write_roberta,
    ),
}
"""config.json's ``model_type`` -> how to read it; `ModelConfig.family` is one of these keys."""
