"""NaN and infinity in stored weights are found while they are read, and named."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alol_jax.devices.sharding import make_mesh, param_sharding
from alol_jax.errors import UserError
from alol_jax.models.files import finite
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.finite import count_not_finite
from alol_jax.models.files.peft_adapter import read_adapter
from alol_jax.models.nf4 import NF4
from tests.models.files.test_peft_adapter import LLAMA, lora_of, random_leaves, written
from tests.models.files.torch_files import write_torch
from tests.models.tiny_llama import here, random_weights, write_directory, write_gguf, write_shards

NAME = "model.layers.1.mlp.up_proj.weight"
DTYPES = ("float16", jnp.bfloat16, "float32", "float64")


def broken(value=np.nan, name=NAME, dtype=np.float32):
    weights = {key: array.astype(dtype) for key, array in random_weights().items()}
    weights[name][1, 3] = value
    return weights


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_is_counted_and_nothing_else(dtype, monkeypatch):
    monkeypatch.setattr(finite, "PIECE", 4)
    largest = jnp.finfo(dtype).max
    values = np.array([[0, -0.0, 1, largest, -largest, jnp.finfo(dtype).tiny, -3]] * 3, dtype)
    assert count_not_finite(values) == 0
    values[0, 0], values[1, 1], values[2, 6] = np.nan, np.inf, -np.inf
    assert count_not_finite(values) == 3 and count_not_finite(values.T) == 3


def test_an_empty_tensor_is_finite():
    assert count_not_finite(np.zeros((0, 3), np.float32)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_names_its_tensor_and_file(value, tmp_path):
    folder = write_directory(tmp_path / "m", broken(value))
    with pytest.raises(UserError) as error:
        open_checkpoint(folder).load(jnp.float32, here)
    said = str(error.value)
    assert said.startswith(f"{folder}/model.safetensors: {NAME} has 1 of {64 * TINY_MLP} numbers")
    assert "NaN or infinite" in said and "\n" not in said


TINY_MLP = random_weights()[NAME].shape[0]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_stored_halves_and_doubles_are_looked_at_as_stored(dtype, tmp_path):
    folder = write_directory(tmp_path / "m", broken(np.inf, dtype=dtype))
    with pytest.raises(UserError, match=NAME):
        open_checkpoint(folder).load(jnp.bfloat16, here)


def test_a_shard_is_named(tmp_path):
    folder = write_shards(tmp_path / "m", broken())
    with pytest.raises(UserError, match=rf"model-0000\d-of-00002.safetensors: {NAME} has 1 of"):
        open_checkpoint(str(folder)).load(jnp.float32, here)


def test_a_torch_file_and_a_gguf_file_are_named(tmp_path):
    folder = tmp_path / "m"
    write_directory(folder, random_weights())
    (folder / "model.safetensors").unlink()
    write_torch(folder / "pytorch_model.bin", broken())
    with pytest.raises(UserError, match=f"pytorch_model.bin: {NAME} has 1 of"):
        open_checkpoint(str(folder)).load(jnp.float32, here)
    file = write_gguf(tmp_path / "m.gguf", broken())
    with pytest.raises(UserError, match="m.gguf: blk.1.ffn_up.weight has 1 of"):
        open_checkpoint(file).load(jnp.float32, here)


@pytest.mark.parametrize("nf4", [None, NF4(double=True)], ids=["plain", "nf4"])
def test_a_model_on_a_mesh_and_a_quantised_one_are_checked_too(nf4, tmp_path):
    path = write_directory(tmp_path / "m", broken(name="model.layers.0.self_attn.k_proj.weight"))
    place = functools.partial(param_sharding, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    with pytest.raises(UserError, match="self_attn.k_proj.weight has 1 of"):
        open_checkpoint(path).load(jnp.bfloat16, place, nf4)


def test_an_adapter_names_its_tensor_before_anything_runs(tmp_path):
    lora = lora_of(LLAMA, "q_proj")
    folder = written(tmp_path, LLAMA, lora, random_leaves(LLAMA, lora))
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    stored[name][0, 0] = np.nan
    save_file(stored, file)
    with pytest.raises(UserError, match=f"adapter_model.safetensors: {name} has 1 of"):
        read_adapter(folder, LLAMA)
