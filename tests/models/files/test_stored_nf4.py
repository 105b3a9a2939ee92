"""Directories in bitsandbytes' NF4 are read as they are; other low precisions are refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alol_jax.errors import UserError
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.nf4 import NF4
from tests.models.files.nf4_files import write_nf4
from tests.models.tiny_llama import CONFIG, here, random_weights, write_directory


def message(path):
    with pytest.raises(UserError) as error:
        open_checkpoint(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("double", [False, True])
def test_codes_and_scales_are_those_of_the_file_bit_for_bit(tmp_path, double):
    """The file was made of the leaves that our own quantisation gives: these come back."""
    weights, nf4 = random_weights(), NF4(double)
    plain = open_checkpoint(write_directory(tmp_path / "plain", weights))
    stored = open_checkpoint(write_nf4(tmp_path / "nf4", weights, double=double))
    assert (plain.stored_nf4, stored.stored_nf4) == (None, nf4)
    assert stored.config == plain.config
    expected = plain.load(jnp.float32, here, nf4)
    found = stored.load(jnp.float32, here, nf4)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
        assert found[path].dtype == leaf.dtype


def test_a_kernel_can_be_read_dequantised_for_merging(tmp_path):
    weights, name = random_weights(), "model.layers.1.mlp.down_proj.weight"
    stored = open_checkpoint(write_nf4(tmp_path / "m", weights, double=True))
    found = stored.weights.read(name)
    assert found.shape == weights[name].shape and found.dtype == np.float32
    error = np.abs(found - weights[name]) / np.abs(weights[name]).max()
    assert 0.001 < error.mean() < 0.05


def test_another_precision_than_the_stored_one_is_never_loaded(tmp_path):
    stored = open_checkpoint(write_nf4(tmp_path / "m", random_weights(), double=True))
    for nf4 in (None, NF4(False)):
        with pytest.raises(ValueError, match="is stored as"):
            stored.load(jnp.float32, here, nf4)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "stored as GPTQ, which is not read"),
        ({"quant_method": "awq", "bits": 4}, "stored as AWQ"),
        ({"quant_method": "fp8"}, "stored as FP8"),
        ({"quant_method": "hqq"}, "stored as 'hqq'"),
        ({"load_in_8bit": True}, "stored as int8 (bitsandbytes)"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "stored as fp4 (bitsandbytes)"),
    ],
)
def test_another_scheme_is_named_and_refused(tmp_path, field, said):
    config = CONFIG | {"quantization_config": field}
    found = message(write_directory(tmp_path / "m", random_weights(), config))
    assert said in found and "config.model.quantisation=nf4" in found


def test_a_kernel_in_full_precision_among_others_in_four_bits_is_named(tmp_path):
    kept = "model.layers.0.self_attn.q_proj.weight"
    path = write_nf4(tmp_path / "m", random_weights(), double=True, keep=lambda name: name != kept)
    assert f"not in 4 bits {kept}; in 4 bits none" in message(path)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        (".quant_map", lambda x: x[::-1].copy(), "a form of NF4 that is not read"),
        (".nested_quant_map", lambda x: x / 2, "a form of NF4 that is not read"),
        (".absmax", lambda x: x[:-1], "a form of NF4 that is not read"),
        (".absmax", lambda x: None, "a form of NF4 that is not read"),
        (".quant_state.bitsandbytes__nf4", lambda x: x[:-1], "is damaged"),
        (".quant_state.bitsandbytes__nf4", lambda x: None, "lacks its state"),
    ],
)
def test_parts_in_another_form_are_one_line(tmp_path, part, change, said):
    write_nf4(tmp_path / "m", random_weights(), double=True)
    file, name = tmp_path / "m" / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(file)
    changed = change(tensors.pop(name + part))
    save_file(tensors | ({} if changed is None else {name + part: changed}), file)
    assert said in message(tmp_path / "m")
