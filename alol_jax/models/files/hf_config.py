"""Hugging Face config.json <-> ModelConfig.

Unsupported means error: a field that changes the computation and is not implemented, or that is
unknown here, raises UserError, because an almost correct model is a wrong model. Dropout rates are
ignored: only adapters have dropout, so that the importance ratio of a policy that equals its
reference is exactly 1.
"""

from __future__ import annotations

from typing import Any

from alol_jax.errors import UserError
from alol_jax.models.config import ModelConfig
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.registry import FAMILIES, MODEL_TYPES

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


# Fields that only models of another kind have -> that kind, and what to do.
_TEXT_ONLY = "choose a checkpoint of the text model alone, such as one of Gemma3ForCausalLM"
_DENSE = "choose a dense model"
_VARIANTS: dict[str, tuple[str, str]] = {
    "vision_config": ("a model of images and text", _TEXT_ONLY),
    "audio_config": ("a model of sound and text", _TEXT_ONLY),
    "text_config": ("a model of text and something else", _TEXT_ONLY),
    "num_experts": ("a mixture of experts", _DENSE),
    "num_local_experts": ("a mixture of experts", _DENSE),
    "n_routed_experts": ("a mixture of experts", _DENSE),
}


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
    _check_variant(fields)
    if kind not in MODEL_TYPES:
        raise fields.unimplemented("model_type", kind, ", ".join(MODEL_TYPES))
    family = MODEL_TYPES[kind]
    shared = {key: _IMPLEMENTED[key] for key in _IMPLEMENTED.keys() - family.ignored}
    implemented = shared | family.implemented
    for key, value in config_json.items():
        if key in implemented and value not in implemented[key]:
            raise fields.unimplemented(key, value, repr(implemented[key][0]))
        known = key in family.reads or key in implemented or key in _IGNORED | family.ignored
        if not known:
            raise UserError(
                f"{where}: unknown field {key} = {value!r}, which may change the computation: "
                "remove it from the file if it does not"
            )
    return family.read(fields)


def _check_variant(fields: Fields) -> None:
    """Raise UserError if a field says that the model is of a kind that no family here is."""
    for key, (kind, way_out) in _VARIANTS.items():
        if fields.values.get(key):
            raise UserError(
                f"{fields.where}: {key} is there, so this is {kind}, which is not implemented: "
                f"{way_out}"
            )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """Convert ``config`` to the fields of config.json, without ``architectures``."""
    return {"model_type": config.family} | FAMILIES[config.family].write(config)
