"""Tiny Llama checkpoints on disk, for tests: a directory, a sharded directory, a GGUF file."""

import json

import gguf
import jax
import numpy as np
from safetensors.numpy import save_file

from alol_jax.models.presets import PRESETS

TINY = PRESETS["llama-tiny"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": TINY.width,
    "intermediate_size": TINY.mlp_width,
    "max_position_embeddings": TINY.max_positions,
    "model_type": "llama",
    "num_attention_heads": TINY.heads,
    "num_hidden_layers": TINY.layers,
    "num_key_value_heads": TINY.kv_heads,
    "rms_norm_eps": TINY.norm_epsilon,
    "rope_theta": TINY.rotary.theta,
    "tie_word_embeddings": True,
    "vocab_size": TINY.vocab_size,
}


def here(path, shape):
    """Every parameter lives on the first device."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def random_weights(seed=0):
    """A tiny Llama under Hugging Face's names, kernels [out, in]."""
    draw = np.random.default_rng(seed)
    d, f, kv = TINY.width, TINY.mlp_width, TINY.kv_heads * TINY.head_width
    shapes = {"model.embed_tokens.weight": (TINY.vocab_size, d), "model.norm.weight": (d,)}
    for i in range(TINY.layers):
        for name, shape in {
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d),
            "mlp.down_proj": (d, f),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_directory(folder, weights, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def write_shards(folder, weights):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:9]}
    shards["model-00002-of-00002.safetensors"] = names[9:]
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def llama_cpp_rows(weight, heads):
    """How llama.cpp's converter reorders the rows of query and key weights."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(file, weights, *, arch="llama", extra=(), keep=lambda name: True, quantize=()):
    writer = gguf.GGUFWriter(file, arch)
    writer.add_block_count(TINY.layers)
    writer.add_context_length(TINY.max_positions)
    writer.add_embedding_length(TINY.width)
    writer.add_feed_forward_length(TINY.mlp_width)
    writer.add_head_count(TINY.heads)
    writer.add_head_count_kv(TINY.kv_heads)
    writer.add_layer_norm_rms_eps(TINY.norm_epsilon)
    writer.add_rope_freq_base(TINY.rotary.theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", "<end>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    for key, value in extra:
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    for name, weight in weights.items():
        stem = name.removeprefix("model.").removesuffix(".weight")
        if stem.startswith("layers."):
            _, layer, inner = stem.split(".", 2)
            heads = {"self_attn.q_proj": TINY.heads, "self_attn.k_proj": TINY.kv_heads}.get(inner)
            weight = weight if heads is None else llama_cpp_rows(weight, heads)
            stem = f"blk.{layer}.{GGUF_NAMES[inner]}"
        stored = {"embed_tokens": "token_embd", "norm": "output_norm"}.get(stem, stem) + ".weight"
        if not keep(stored):
            continue
        kind = dict(quantize).get(stored)
        if kind is None:
            writer.add_tensor(stored, weight)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)
