"""What an adapter changes besides adding A B: some layers only, biases, ends, DoRA."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alol_jax.errors import UserError
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.merge import weights_from_checkpoint
from alol_jax.models.files.peft_adapter import read_adapter
from alol_jax.models.files.peft_rows import PREFIX
from alol_jax.text.tokenizer_files import byte_level, save
from tests.models.files.test_peft_adapter import (
    CONFIGS,
    LLAMA,
    change,
    lora_of,
    random_leaves,
    same,
    written,
)
from tests.models.test_language_model import opened
from tests.models.tiny_llama import CONFIG, here, random_weights, write_directory

DRAW = np.random.default_rng(0)
UNTIED = dataclasses.replace(LLAMA, tied_embeddings=False)
EMBEDDING, HEAD = f"{PREFIX}model.embed_tokens.weight", f"{PREFIX}lm_head.weight"


def adapter(folder, config=LLAMA, modules=("q_proj", "down_proj"), *, add=None, **changes):
    """An adapter, with more tensors in its file and other fields in its config."""
    lora = lora_of(config, *modules)
    written(folder, config, lora, random_leaves(config, lora), **changes)
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | (add or {}), file)
    return folder


def without(folder, *parts):
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    save_file({n: x for n, x in stored.items() if not any(part in n for part in parts)}, file)
    return folder


def drawn(*shape):
    return DRAW.normal(size=shape).astype(np.float32)


def refusal(folder, config=LLAMA):
    with pytest.raises(UserError) as error:
        read_adapter(folder, config)
    assert "\n" not in str(error.value)
    return str(error.value)


# some layers


@pytest.mark.parametrize("layers", [[1], 1])
@pytest.mark.parametrize("pattern", [None, "layers", ["blocks", "layers"]])
def test_layers_without_an_adapter_have_zeros(layers, pattern, tmp_path):
    fields = {"layers_to_transform": layers, "layers_pattern": pattern}
    lora = lora_of(LLAMA, "q_proj", "down_proj")
    leaves = random_leaves(LLAMA, lora)
    folder = without(written(tmp_path, LLAMA, lora, leaves, **fields), "layers.0.")
    for leaf in leaves.values():
        leaf[0] = 0
    found = read_adapter(folder, LLAMA)
    assert found.lora == lora and not found.changes
    same(found.leaves, leaves)


def test_an_adapter_on_all_layers_does_not_fit_a_config_that_names_one(tmp_path):
    assert "unexpected base_model.model.model.layers.0." in refusal(
        adapter(tmp_path, layers_to_transform=[1])
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers_to_transform": [0, 2]}, "layers_to_transform = 2 is no layer of this model"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform = '0' is no layer"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "layers_pattern = ['h'] is not"),
    ],
)
def test_layers_that_the_base_has_not_are_one_line(fields, said, tmp_path):
    assert said in refusal(adapter(tmp_path, **fields))


# biases


@pytest.mark.parametrize("name", ["{}.base_layer.bias", "{}.bias"])
def test_biases_of_adapted_maps_take_the_place_of_the_bases(name, tmp_path):
    config = CONFIGS["gpt-neox"]
    module = f"{PREFIX}gpt_neox.layers.{{}}.attention.dense"
    biases = [drawn(config.width) for _ in range(config.layers)]
    add = {name.format(module.format(i)): bias for i, bias in enumerate(biases)}
    found = read_adapter(adapter(tmp_path, config, ["o_proj"], add=add, bias="lora_only"), config)
    assert str(found.changes) == "o_proj/bias" and found.lora.modules == ("o_proj",)
    base = drawn(config.width)
    for layer, bias in enumerate(biases):
        np.testing.assert_array_equal(found.changes("layers/o_proj/bias", layer, base), bias)
    assert found.changes("layers/up_proj/bias", 0, base) is base


def test_packed_biases_are_split_like_the_map(tmp_path):
    config = CONFIGS["gpt2"]
    packed = drawn(3 * config.width)
    names = [f"{PREFIX}transformer.h.{i}.attn.c_attn.base_layer.bias" for i in range(config.layers)]
    add = dict.fromkeys(names, packed)
    found = read_adapter(adapter(tmp_path, config, ["q_proj"], add=add, bias="lora_only"), config)
    parts = [found.changes(f"layers/{x}_proj/bias", 1, np.zeros(1)) for x in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), packed)


def test_biases_that_are_promised_and_missing_are_named(tmp_path):
    config = CONFIGS["gpt-neox"]
    said = refusal(adapter(tmp_path, config, ["o_proj"], bias="lora_only"), config)
    assert "missing base_model.model.gpt_neox.layers.0.attention.dense.base_layer.bias" in said


def test_a_model_without_biases_has_none_to_read(tmp_path):
    assert not read_adapter(adapter(tmp_path, bias="lora_only"), LLAMA).changes


# embedding and head


def ends(config=LLAMA):
    return {name: drawn(config.vocab_size, config.width) for name in (EMBEDDING, HEAD)}


@pytest.mark.parametrize("named", [["embed_tokens", "lm_head"], ["model.embed_tokens", "lm_head"]])
def test_an_embedding_and_a_head_take_the_place_of_the_bases(named, tmp_path):
    add = ends()
    found = read_adapter(adapter(tmp_path, UNTIED, add=add, modules_to_save=named), UNTIED)
    assert str(found.changes) == "embed/embedding, head/kernel"
    for path, expected in (("embed/embedding", add[EMBEDDING]), ("head/kernel", add[HEAD].T)):
        np.testing.assert_array_equal(found.changes(path, 0, np.zeros(1)), expected)


def test_an_embedding_that_peft_saved_unasked_is_read(tmp_path):
    add = {EMBEDDING: ends()[EMBEDDING]}
    found = read_adapter(adapter(tmp_path, UNTIED, add=add), UNTIED)
    assert str(found.changes) == "embed/embedding"


def test_one_matrix_for_both_ends_stays_one(tmp_path):
    add = ends()
    both = {"modules_to_save": ["embed_tokens", "lm_head"]}
    one = "the base has one matrix as embedding and head"
    assert one in refusal(adapter(tmp_path / "a", add=add, **both))
    head = {HEAD: add[HEAD]}
    assert one in refusal(adapter(tmp_path / "b", add=head, modules_to_save=["lm_head"]))
    alike = {EMBEDDING: add[HEAD], HEAD: add[HEAD]}
    found = read_adapter(adapter(tmp_path / "c", add=alike, **both), LLAMA)
    assert str(found.changes) == "embed/embedding"
    tied = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    add = {EMBEDDING: add[EMBEDDING]}
    assert read_adapter(adapter(tmp_path / "d", add=add, **tied), LLAMA).changes


@pytest.mark.parametrize(
    ("fields", "add", "said"),
    [
        ({"modules_to_save": ["score"]}, {}, "modules_to_save = ['score'] is not implemented"),
        ({"modules_to_save": ["lm_head"]}, {}, "missing base_model.model.lm_head.weight"),
        (
            {"modules_to_save": ["lm_head"]},
            {HEAD: np.zeros((LLAMA.vocab_size + 1, LLAMA.width), np.float32)},
            "to others of another shape, which is not implemented: base_model.model.lm_head.weight",
        ),
        ({"bias": "all"}, {}, "bias = 'all' is not implemented"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_by_name(fields, add, said, tmp_path):
    assert said in refusal(adapter(tmp_path, UNTIED, add=add, **fields), UNTIED)


# DoRA


def dora(folder, config=LLAMA, modules=("q_proj", "down_proj"), **fields):
    folder = adapter(folder, config, modules, use_dora=True, **fields)
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    outputs = {n.partition(".lora_B")[0]: x.shape[0] for n, x in stored.items() if ".lora_B" in n}
    add = {f"{n}.lora_magnitude_vector": 1 + abs(drawn(size)) for n, size in outputs.items()}
    save_file(stored | add, file)
    return folder


def test_dora_is_merged_into_the_kernels(tmp_path):
    """The outputs of a merged kernel have the stored lengths, in the direction of W + s · B A."""
    found = read_adapter(dora(tmp_path), LLAMA)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert found.lora is None and found.leaves == {} and len(found.changes.dora) == 2 * LLAMA.layers
    module, kernel = f"{PREFIX}model.layers.1.mlp.down_proj", drawn(LLAMA.mlp_width, LLAMA.width)
    merged = found.changes("layers/down_proj/kernel", 1, kernel)
    magnitude = stored[f"{module}.lora_magnitude_vector"]
    np.testing.assert_allclose(np.linalg.norm(merged, axis=0), magnitude, rtol=1e-5)
    a, b = (stored[f"{module}.lora_{x}.weight"] for x in "AB")
    turned = kernel.T + 2.0 * b @ a
    cosine = np.sum(turned * merged.T, 1) / (np.linalg.norm(turned, axis=1) * magnitude)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt-neox", "gpt2"])
def test_dora_of_a_packed_map_is_that_of_the_whole(family, tmp_path):
    config = CONFIGS[family]
    found = read_adapter(dora(tmp_path, config, ["q_proj"]), config)
    lengths = [
        np.linalg.norm(
            found.changes(f"layers/{x}_proj/kernel", 0, drawn(*2 * [config.width])), axis=0
        )
        for x in "qkv"
    ]
    stored = load_file(tmp_path / "adapter_model.safetensors")
    (name,) = [n for n in stored if n.endswith("magnitude_vector") and ".0." in n]
    joined = np.sort(np.concatenate(lengths))
    np.testing.assert_allclose(joined, np.sort(stored[name]), rtol=1e-5)


def test_the_older_name_of_a_magnitude_is_read_and_a_missing_one_named(tmp_path):
    folder = dora(tmp_path)
    first = read_adapter(folder, LLAMA)
    file = folder / "adapter_model.safetensors"
    end = ".lora_magnitude_vector"
    stored = load_file(file)
    save_file({n + ".weight" if n.endswith(end) else n: x for n, x in stored.items()}, file)
    assert read_adapter(folder, LLAMA).fingerprint() == first.fingerprint()
    without(folder, "layers.0.mlp.down_proj.lora_magnitude")
    assert "missing base_model.model.model.layers.0.mlp.down_proj.lora_magn" in refusal(folder)


# in a model


def test_a_model_is_loaded_with_the_changes_and_trains_new_adapters(tmp_path):
    path = write_directory(tmp_path / "m", random_weights())
    save(byte_level(), tmp_path / "m")
    folder = dora(tmp_path / "a")
    plain, lm = opened(path=path), opened(path=path, adapter=str(folder))
    assert "merged into the base while that is loaded (down_proj/kernel, q_proj/kernel)" in "".join(
        lm.notes
    )
    assert lm.transformer.lora.rank == 2 and lm.adapter.lora is None
    assert lm.fingerprint["weights"] != plain.fingerprint["weights"]
    changed = {p for p, x in lm.base.items() if not np.array_equal(x, plain.base[p])}
    assert changed == {"layers/q_proj/kernel", "layers/down_proj/kernel"}
    exported = weights_from_checkpoint(lm.checkpoint)("layers/q_proj/kernel", 1)
    np.testing.assert_array_equal(exported, lm.base["layers/q_proj/kernel"][1])


def test_an_embedding_of_the_adapter_is_loaded_beside_its_factors(tmp_path):
    weights = random_weights() | {"lm_head.weight": drawn(LLAMA.vocab_size, LLAMA.width)}
    path = write_directory(tmp_path / "m", weights, CONFIG | {"tie_word_embeddings": False})
    add = {EMBEDDING: ends()[EMBEDDING]}
    found = read_adapter(adapter(tmp_path / "a", UNTIED, add=add), UNTIED)
    checkpoint = dataclasses.replace(open_checkpoint(path), changes=found.changes)
    base = checkpoint.load(jnp.float32, here)
    np.testing.assert_array_equal(base["embed/embedding"], add[EMBEDDING])
    np.testing.assert_array_equal(base["head/kernel"], weights["lm_head.weight"].T)
    assert found.lora.modules == ("q_proj", "down_proj")


def test_a_random_model_is_no_base_for_changes(tmp_path):
    with pytest.raises(UserError, match="changes weights of its base .*not a random model"):
        opened(adapter=str(dora(tmp_path)))


def test_the_fingerprint_follows_the_changes(tmp_path):
    one = read_adapter(dora(tmp_path / "a"), LLAMA).fingerprint()
    other = read_adapter(dora(tmp_path / "b"), LLAMA).fingerprint()  # other magnitudes
    assert one != other
    change(tmp_path / "a", lora_alpha=7)
    assert read_adapter(tmp_path / "a", LLAMA).fingerprint() not in (one, other)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["use_dora"]
