"""The shape of a model: ``ModelConfig``, its presets, and how a Hugging Face config.json is read.

Fail closed: a field of a foreign config that changes the mathematics and is not implemented, or
that this file has never heard of, is an error. A model that is read almost right is read wrong.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama: RMS norms, rotary positions (rotate half), gated SiLU mlp, grouped heads, no biases.

    Raises:
      UserError: a size is not positive, ``heads`` is no multiple of ``kv_heads``, or ``head_width``
        is odd (rotary positions turn pairs).
    """

    vocab_size: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # N, query heads
    kv_heads: int  # G, key/value heads; N % G == 0
    head_width: int  # H, even
    mlp_width: int  # F
    max_positions: int  # the longest T that the model was trained for
    norm_epsilon: float
    rope_theta: float  # base of the rotary wavelengths
    tied_embeddings: bool  # the head is the transposed embedding

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "tied_embeddings" and not value > 0:
                raise UserError(f"model: {field.name} = {value!r} must be positive")
        if self.heads % self.kv_heads:
            raise UserError(
                f"model: heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}"
            )
        if self.head_width % 2:
            raise UserError(
                f"model: head_width = {self.head_width} is odd; rotary positions need it even"
            )


PRESETS: dict[str, ModelConfig] = {
    # For debug runs and tests: holds the 259 ids of the byte-level tokenizer.
    "llama-tiny": ModelConfig(
        vocab_size=264,
        width=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=16,
        mlp_width=128,
        max_positions=1024,
        norm_epsilon=1e-5,
        rope_theta=10_000.0,
        tied_embeddings=True,
    ),
    "smollm2-135m": ModelConfig(
        vocab_size=49_152,
        width=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_width=64,
        mlp_width=1536,
        max_positions=8192,
        norm_epsilon=1e-5,
        rope_theta=100_000.0,
        tied_embeddings=True,
    ),
}

# ------------------------------------------------------------------ Hugging Face config.json

_READ = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim max_position_embeddings rms_norm_eps rope_theta rope_parameters "
    "rope_scaling tie_word_embeddings".split()
)

# Fields that change the mathematics, with the values whose mathematics is implemented.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"], None),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0.0, None),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1.0, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "layer_types": (None,),
    "quantization_config": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "auto_map": (None,),
}

# Fields without influence on the mathematics of a forward pass: provenance, initialisation,
# storage, how the weights were sliced, what a forward returns, and generation settings that old
# versions kept here.
_HARMLESS = frozenset(
    "transformers_version _name_or_path _commit_hash torch_dtype dtype torchscript use_bfloat16 "
    "initializer_range use_cache pretraining_tp chunk_size_feed_forward is_decoder is_llama_config "
    "attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled "
    "max_sequence_length transformers.js_config unsloth_version unsloth_fixed tf_legacy_loss "
    "bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id "
    "tokenizer_class prefix output_attentions output_hidden_states output_scores return_dict "
    "return_dict_in_generate id2label label2id num_labels problem_type finetuning_task "
    "task_specific_params cross_attention_hidden_size tie_encoder_decoder "
    "temperature top_k top_p typical_p repetition_penalty length_penalty diversity_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
    "num_beams num_beam_groups do_sample early_stopping max_length min_length forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens".split()
)

_ROPE_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def from_hf(config_json: dict[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a Hugging Face Llama config.json (transformers 4 and 5).

    A field that transformers itself may leave out has its documented default: one key/value head
    per query head, head_dim = hidden_size / heads, rope_theta 10000, embeddings not tied.

    Args:
      config_json: the parsed file.
      where: what to call the file in an error.

    Raises:
      UserError: a field is missing, has a wrong type, asks for mathematics that is not
        implemented, or is unknown.
    """
    for key, value in config_json.items():
        if key in _IMPLEMENTED and value not in _IMPLEMENTED[key]:
            raise UserError(
                f"{where}: {key} = {value!r} is not implemented "
                f"(only {_IMPLEMENTED[key][0]!r} is): choose another checkpoint"
            )
        if key not in _READ and key not in _IMPLEMENTED and key not in _HARMLESS:
            raise UserError(
                f"{where}: unknown field {key} = {value!r}, which may change the mathematics: "
                "remove it from the file if it does not"
            )
    if "model_type" not in config_json:
        raise UserError(f"{where}: model_type is missing: is this a Llama's config.json?")
    width = _size(config_json, "hidden_size", where)
    heads = _size(config_json, "num_attention_heads", where)
    return ModelConfig(
        vocab_size=_size(config_json, "vocab_size", where),
        width=width,
        layers=_size(config_json, "num_hidden_layers", where),
        heads=heads,
        kv_heads=_size_or(config_json, "num_key_value_heads", heads, where),
        head_width=_size_or(config_json, "head_dim", width // max(heads, 1), where),
        mlp_width=_size(config_json, "intermediate_size", where),
        max_positions=_size(config_json, "max_position_embeddings", where),
        norm_epsilon=_number(config_json, "rms_norm_eps", where),
        rope_theta=_rope_theta(config_json, where),
        tied_embeddings=_flag(config_json, "tie_word_embeddings", where),
    )


def _rope_theta(config_json: dict[str, Any], where: str) -> float:
    """The rotary base, stated at the top (transformers 4) or in ``rope_parameters`` (5)."""
    thetas = [_number(config_json, "rope_theta", where)] if "rope_theta" in config_json else []
    for key in ("rope_parameters", "rope_scaling"):
        rope = config_json.get(key)
        if rope is None:
            continue
        plain = (
            isinstance(rope, dict)
            and set(rope) <= _ROPE_KEYS
            and {rope.get("rope_type", "default"), rope.get("type", "default")} == {"default"}
            and rope.get("partial_rotary_factor", 1.0) == 1.0
        )
        if not plain:
            raise UserError(
                f"{where}: {key} = {rope!r} is not implemented "
                "(only plain rotary positions are): choose another checkpoint"
            )
        if "rope_theta" in rope:
            thetas.append(_number(rope, "rope_theta", f"{where}: {key}"))
    if len(set(thetas)) > 1:
        raise UserError(f"{where}: rope_theta is stated twice and differs: {thetas}")
    return thetas[0] if thetas else 10_000.0


def _size(config_json: dict[str, Any], key: str, where: str) -> int:
    value = config_json.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{where}: {key} must be a whole number, found {value!r}")
    return value


def _size_or(config_json: dict[str, Any], key: str, absent: int, where: str) -> int:
    return absent if config_json.get(key) is None else _size(config_json, key, where)


def _number(config_json: dict[str, Any], key: str, where: str) -> float:
    value = config_json.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{where}: {key} must be a number, found {value!r}")
    return float(value)


def _flag(config_json: dict[str, Any], key: str, where: str) -> bool:
    value = config_json.get(key, False)
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key} must be true or false, found {value!r}")
    return value
