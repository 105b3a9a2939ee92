"""What the stages share: which weights there are, which of them train, what is refused."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.models.adapters import adapters_of
from alol_jax.models.grid_sizes import GridOptions, prompt_widths
from alol_jax.models.language_model import open_language_model
from alol_jax.models.nf4 import NF4
from alol_jax.models.presets import PRESETS
from alol_jax.models.transformer import quantise_params
from alol_jax.text.tokenizer_files import byte_level, save
from configs import common
from tests.models.files.nf4_files import write_nf4
from tests.models.small_models import base_of
from tests.models.tiny_llama import TINY, here, random_weights, write_directory, write_gguf
from tests.tiny_run import mesh_of


def opened(mesh=None, lora=(), **changes):
    options = common.get_config().model
    options.update({"path": "random:llama-tiny", "max_prompt": 16, "max_response": 6})
    options.update({"dtype": "float32"} | changes)
    options.lora.update({"rank": 2} | dict(lora))
    return open_language_model(options, mesh_of(1) if mesh is None else mesh)


def refusal(**changes):
    with pytest.raises(UserError) as error:
        opened(**changes)
    return str(error.value)


# weights


def test_a_random_model_is_the_preset_with_the_byte_tokenizer_and_the_same_weights_every_time():
    lm = opened()
    assert lm.transformer.config == TINY and lm.tokenizer.vocab_size == 259
    assert lm.limits == (16, 6) and lm.grid == GridOptions(width=0, rows=0)
    again = opened()
    for path, leaf in lm.base.items():
        np.testing.assert_array_equal(leaf, again.base[path])
    expected = base_of(jax.eval_shape(lm.transformer.init, jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in lm.base.items()} == {
        path: leaf.shape for path, leaf in expected.items()
    }


def test_a_base_that_is_stored_in_four_bits_stays_as_it_is_and_the_config_must_say_so(tmp_path):
    path = write_nf4(tmp_path / "m", random_weights(), double=True)
    save(byte_level(), tmp_path / "m")
    lm = opened(path=path, quantisation="nf4-double")
    name = "layers/up_proj/nf4_codes"
    stored = lm.checkpoint.load(jnp.float32, here, NF4(double=True))
    np.testing.assert_array_equal(lm.base[name], stored[name])
    assert {p: x.dtype for p, x in lm.base.items()} == {
        p: x.dtype for p, x in lm.abstract()[1].items()
    }
    for other in ("none", "nf4"):
        said = refusal(path=path, quantisation=other)
        assert "is stored in 4 bits: set it to 'nf4-double'" in said


def test_random_weights_do_not_depend_on_the_adapters():
    bare, adapted = opened(lora={"rank": 0}).base, opened(lora={"rank": 3}).base
    assert bare.keys() == adapted.keys()
    for path, leaf in bare.items():
        np.testing.assert_array_equal(leaf, adapted[path])


def test_the_base_is_made_once_and_never_copied():
    lm = opened()
    assert lm.base is lm.base and lm.frozen() is lm.base
    params = {**lm.frozen(), **lm.trainable(jax.random.key(0))}
    for path, leaf in lm.base.items():
        assert params[path] is leaf


def test_a_checkpoint_is_read_once_and_only_when_it_is_needed(tmp_path, monkeypatch):
    weights = random_weights()
    lm = opened(path=write_gguf(tmp_path / "m.gguf", weights), dtype="bfloat16")
    reads = []
    load = type(lm.checkpoint).load
    monkeypatch.setattr(
        type(lm.checkpoint), "load", lambda *a: reads.append(1) or load(*a), raising=True
    )
    lm.trainable(jax.random.key(0))
    assert not reads
    stored = weights["model.embed_tokens.weight"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(lm.base["embed/embedding"], stored)
    lm.frozen()
    assert reads == [1]


def test_under_lora_only_float32_adapters_train_on_a_base_in_the_compute_dtype():
    lm = opened(dtype="bfloat16", lora={"modules": ("q_proj", "o_proj")})
    fresh = lm.trainable(jax.random.key(1))
    assert set(fresh) == {
        f"layers/{name}/lora_{factor}" for name in ("q_proj", "o_proj") for factor in "ab"
    }
    assert {leaf.dtype for leaf in fresh.values()} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in lm.base.values()} == {jnp.dtype("bfloat16")}
    assert not set(fresh) & set(lm.frozen())
    assert not fresh.keys() & lm.frozen().keys()
    other = lm.trainable(jax.random.key(2))
    assert not np.allclose(fresh["layers/q_proj/lora_a"], other["layers/q_proj/lora_a"])


def test_full_fine_tuning_trains_every_weight_in_float32_and_freezes_none():
    lm = opened(dtype="bfloat16", lora={"rank": 0})
    fresh = lm.trainable(jax.random.key(0))
    assert lm.frozen() == {} and adapters_of(fresh) == {}
    assert {leaf.dtype for leaf in fresh.values()} == {jnp.dtype("float32")}
    states = lm.transformer.hidden(fresh, jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3)))
    assert states.dtype == jnp.bfloat16


def test_weights_lie_on_the_mesh_as_the_partition_table_says():
    lm = opened(mesh=make_mesh(data=2, fsdp=2, tensor=2))
    params = {**lm.frozen(), **lm.trainable(jax.random.key(0))}
    shards = {path: leaf.addressable_shards[0].data.shape for path, leaf in params.items()}
    assert shards["layers/gate_proj/kernel"] == (2, TINY.width // 2, TINY.mlp_width // 2)
    assert shards["layers/down_proj/lora_a"] == (2, TINY.mlp_width // 2, 2)
    assert {len(leaf.sharding.device_set) for leaf in params.values()} == {8}


# what is refused


def test_an_unknown_preset_is_refused_with_the_one_that_was_meant_or_all():
    assert "no preset 'llama-tin': did you mean 'llama-tiny'?" in refusal(path="random:llama-tin")
    assert all(name in refusal(path="random:x") for name in PRESETS)


def test_an_encoder_is_refused_as_a_policy():
    said = "is not a language model that can generate (roberta)"
    assert said in refusal(path="random:roberta-base")


def test_an_unknown_remat_policy_is_refused_with_all_of_them():
    said = refusal(remat="some")
    assert "config.model.remat: no policy 'some': expected one of none, projections, " in said


def test_a_quantised_base_needs_adapters_and_a_known_name():
    assert "a quantised base cannot train" in refusal(quantisation="nf4", lora={"rank": 0})
    assert "did you mean 'nf4'?" in refusal(quantisation="nf5")


# without arrays


@pytest.mark.parametrize("quantisation", ["none", "nf4-double"])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_abstract_leaves_are_those_that_are_made(rank, quantisation):
    if rank == 0 and quantisation != "none":
        pytest.skip("a quantised base does not train")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    lm = opened(mesh=mesh, dtype="bfloat16", quantisation=quantisation, lora={"rank": rank})
    made = (lm.trainable(jax.random.key(0)), lm.frozen())
    for real, described in zip(made, lm.abstract(), strict=True):
        assert {p: (x.shape, x.dtype, x.sharding) for p, x in real.items()} == {
            p: (x.shape, x.dtype, x.sharding) for p, x in described.items()
        }


def test_a_quantised_checkpoint_is_the_quantised_weights_layer_by_layer(tmp_path):
    """Read from a file onto the mesh, and made from the unquantised parameters at once."""
    path = write_gguf(tmp_path / "m.gguf", random_weights())
    plain = opened(path=path)
    expected = quantise_params(plain.base, NF4(double=False))
    for mesh in (mesh_of(1), make_mesh(data=2, fsdp=2, tensor=2)):
        read = opened(mesh=mesh, path=path, quantisation="nf4").base
        assert read.keys() == expected.keys()
        for name, leaf in expected.items():
            np.testing.assert_array_equal(read[name], leaf, err_msg=name)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(monkeypatch):
    monkeypatch.setitem(PRESETS, "llama-small", dataclasses.replace(TINY, vocab_size=258))
    said = refusal(path="random:llama-small")
    assert "the tokenizer has 259 tokens, the model only 258" in said
    monkeypatch.setitem(PRESETS, "llama-small", dataclasses.replace(TINY, vocab_size=259))
    opened(path="random:llama-small")


def test_prompt_and_response_together_may_not_exceed_the_positions_of_the_model():
    said = refusal(max_prompt=1000, max_response=25)
    assert "max_prompt + max_response = 1000 + 25: the model has 1024 positions" in said
    assert opened(max_prompt=1000, max_response=24).limits == (1000, 24)


@pytest.mark.parametrize("name", ["max_prompt", "max_response"])
def test_a_prompt_and_a_response_may_have_a_token(name):
    assert f"config.model.{name}=0 must be 1 or more" in refusal(**{name: 0})


def test_a_row_of_a_grid_must_hold_a_whole_example_and_have_a_half():
    said = refusal(width=20)
    assert "config.model.width=20: a row holds whole examples of up to" in said and "16 + 6" in said
    assert "config.model.width=23 must be even" in refusal(width=23)
    assert opened(width=22, rows=3).grid == GridOptions(22, 3)


def test_the_rows_of_a_grid_must_be_shared_out_evenly():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert "config.model.rows=6 must be a multiple of data · fsdp = 4" in refusal(mesh=mesh, rows=6)
    assert "config.model.rows=-1" in refusal(rows=-1)
    assert opened(mesh=mesh, rows=8).grid.rows == 8


@pytest.mark.parametrize("limit", [1, 16, 64, 65, 100, 128, 512, 1000, 2048])
def test_prompts_are_decoded_at_a_quarter_a_half_and_the_whole_of_the_limit(limit):
    widths = prompt_widths(limit, mesh_of(1))
    assert list(widths) == sorted(set(widths)) and len(widths) <= 3
    assert limit <= widths[-1] < limit + 8 and all(width % 8 == 0 for width in widths)
    assert all(width >= 64 for width in widths[:-1])
    assert len(widths) == 1 + (limit // 2 >= 64) + (limit // 4 >= 64)
    assert opened(max_prompt=min(limit, 1000)).prompt_widths[-1] >= min(limit, 1000)


def test_a_directory_without_its_tokenizer_is_refused(tmp_path):
    assert "has no tokenizer: add tokenizer.json" in refusal(
        path=write_directory(tmp_path, random_weights())
    )


# the fingerprint


def test_the_fingerprint_follows_weights_options_and_tokenizer(tmp_path):
    assert opened().fingerprint == opened().fingerprint
    first = write_gguf(tmp_path / "a.gguf", random_weights(0))
    marks = [
        opened(**changes).fingerprint
        for changes in (
            {},
            {"dtype": "bfloat16"},
            {"lora": {"rank": 3}},
            {"lora": {"alpha": 7.0}},
            {"max_prompt": 17},
            {"path": first},
        )
    ]
    write_gguf(first, random_weights(1))
    marks.append(opened(path=first).fingerprint)
    assert all(a != b for a, b in itertools.combinations(marks, 2))
