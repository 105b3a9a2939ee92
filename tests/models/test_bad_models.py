"""A model that cannot be used exactly: one clear line, exit code 2, nothing half-written."""

import json

import numpy as np
import pytest

from alol_jax.models.adapters import is_adapter
from alol_jax.runs.checkpoint import load_params
from alol_jax.text.tokenizer_files import byte_level, save
from tests.models.files.torch_files import write_torch
from tests.models.tiny_llama import (
    CONFIG,
    random_weights,
    write_directory,
    write_gguf,
    write_shards,
)
from tests.running import SMALL, refused, run_here


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-1000])
    return file


def truncated_safetensors(folder):
    write_directory(folder / "m", random_weights())
    cut_short(folder / "m" / "model.safetensors")
    return folder / "m"


def corrupt_safetensors(folder):
    write_directory(folder / "m", random_weights())
    file = folder / "m" / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    return folder / "m"


def truncated_gguf(folder):
    write_gguf(folder / "m.gguf", random_weights())
    return cut_short(folder / "m.gguf")


def missing_shard(folder):
    shards = write_shards(folder / "m", random_weights())
    (shards / "model-00001-of-00002.safetensors").unlink()
    return shards


def another_shape(folder):
    weights = random_weights() | {"model.norm.weight": np.ones(7, np.float32)}
    return write_directory(folder / "m", weights)


def other_names(folder):
    weights = random_weights()
    weights["model.layers.0.mlp.extra.weight"] = weights.pop("model.norm.weight")
    return write_directory(folder / "m", weights)


def another_family(folder):
    return write_directory(folder / "m", random_weights(), CONFIG | {"model_type": "mamba"})


def a_relative_that_the_weights_are_not(folder):
    fields = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    return write_directory(folder / "m", random_weights(), CONFIG | fields)


def a_model_of_images(folder):
    return write_directory(folder / "m", random_weights(), CONFIG | {"vision_config": {"depth": 2}})


def in_eight_bits(folder):
    stored = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    return write_directory(folder / "m", random_weights(), CONFIG | stored)


def of_a_newer_release(folder):
    return write_directory(folder / "m", random_weights(), CONFIG | {"attention_sinks": 4})


def a_family_that_the_weights_are_not(folder):
    fields = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 264,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 1024,
    }
    return write_directory(folder / "m", random_weights(), fields)


def small_vocabulary(folder):
    weights = random_weights()
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:200]
    write_directory(folder / "m", weights, CONFIG | {"vocab_size": 200})
    save(byte_level(), folder / "m")
    return folder / "m"


def few_positions(folder):
    write_directory(folder / "m", random_weights(), CONFIG | {"max_position_embeddings": 100})
    save(byte_level(), folder / "m")
    return folder / "m"


def a_pickle_that_would_run_code(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00xtR.")
    return folder


def truncated_torch_file(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    cut_short(write_torch(folder / "pytorch_model.bin", random_weights()))
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (truncated_safetensors, "model.safetensors is damaged or not a safetensors file"),
        (corrupt_safetensors, "model.safetensors is damaged or not a safetensors file"),
        (truncated_gguf, "m.gguf is damaged or not a GGUF file"),
        (missing_shard, "shard model-00001-of-00002.safetensors is missing"),
        (another_shape, "weights of another shape: model.norm.weight (7,), expected (64,)"),
        (other_names, "missing model.norm.weight; unexpected model.layers.0.mlp.extra.weight"),
        (another_family, "model_type = 'mamba' is not implemented (only llama, mistral"),
        (a_relative_that_the_weights_are_not, "they are those of llama or mistral: correct"),
        (a_model_of_images, "vision_config is there, so this is a model of images and text"),
        (in_eight_bits, "the weights are stored as int8 (bitsandbytes), which is not read"),
        (of_a_newer_release, "unknown field attention_sinks = 4, which may change"),
        (a_family_that_the_weights_are_not, "the weights are not those of the config: missing"),
        (small_vocabulary, "the tokenizer has 259 tokens, the model only 200"),
        (few_positions, "max_response = 160 + 48: the model has 100 positions"),
        (a_pickle_that_would_run_code, "pytorch_model.bin holds more than tensors: os.system"),
        (truncated_torch_file, "pytorch_model.bin is damaged or not a file of torch.save"),
        (lambda folder: "no-such-org/no-such-model", "could not be downloaded from the"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_model_that_cannot_be_used_is_one_line(make, said, tmp_path):
    path = make(tmp_path)
    result = run_here(tmp_path / "run", f"--config.model.path={path}")
    assert said in refused(result)
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


def test_adapters_of_another_base_are_refused(tmp_path):
    """A result holds adapters alone; its record knows the base that they belong to."""
    arguments = (*SMALL, f"--config.model.path={tmp_path / 'm'}", "--config.model.quantisation=nf4")
    write_directory(tmp_path / "m", random_weights(0))
    save(byte_level(), tmp_path / "m")
    result = run_here(tmp_path / "run", *arguments, "--stages=load,score,fit_reference")
    assert result.returncode == 0, result.stderr
    kept = load_params(tmp_path / "run" / "03_fit_reference" / "trained")
    assert kept and all(is_adapter(path) for path in kept)
    write_directory(tmp_path / "m", random_weights(1))
    said = refused(run_here(tmp_path / "run", *arguments, "--stages=generate"))
    assert "03_fit_reference was made with weights = " in said and "--redo" in said
