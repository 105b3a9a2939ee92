"""A clone without git lfs has pointers in the place of weights and tokenizers: it is said so."""

import jax.numpy as jnp
import pytest

from alol_jax.errors import UserError
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.peft_adapter import read_adapter
from alol_jax.text.tokenizer_files import byte_level, from_directory, save
from tests.models.files.test_peft_adapter import LLAMA, lora_of, random_leaves, written
from tests.models.tiny_llama import here, random_weights, write_directory, write_shards

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


def refusal(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value) and "`git lfs pull`" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_weights_and_config(name, tmp_path):
    folder = tmp_path / "m"
    write_directory(folder, random_weights())
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    said = refusal(lambda: open_checkpoint(str(folder)))
    assert said.startswith(f"{folder}/{name}: a Git LFS pointer")


def test_a_shard_and_its_index(tmp_path):
    folder = write_shards(tmp_path / "m", random_weights())
    (folder / "model-00002-of-00002.safetensors").write_text(POINTER)
    assert "model-00002-of-00002.safetensors: a" in refusal(lambda: open_checkpoint(str(folder)))
    (folder / "model.safetensors.index.json").write_text(POINTER)
    assert "model.safetensors.index.json: a" in refusal(lambda: open_checkpoint(str(folder)))


def test_a_gguf_file(tmp_path):
    (tmp_path / "m.gguf").write_text(POINTER)
    said = refusal(lambda: open_checkpoint(str(tmp_path / "m.gguf")).load(jnp.float32, here))
    assert "m.gguf: a Git LFS pointer" in said


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter(name, tmp_path):
    lora = lora_of(LLAMA, "q_proj")
    folder = written(tmp_path, LLAMA, lora, random_leaves(LLAMA, lora))
    (folder / name).write_text(POINTER)
    assert f"{name}: a Git LFS pointer" in refusal(lambda: read_adapter(folder, LLAMA))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
def test_a_tokenizer(name, tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    save(byte_level(), folder)
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_text(POINTER)
    assert f"{name}: a Git LFS pointer" in refusal(lambda: from_directory(folder))
