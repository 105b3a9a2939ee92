"""The same values as bitsandbytes, which runs on CPU: bit for bit, scales in 8 bits to a rounding.

Its CPU library looks 8-bit codes up approximately (about one in fifty is not the nearest); the
nearest ones are those of its CUDA kernel and of the float64 path of its operator.
"""

import dataclasses
import itertools
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.nf4 import LEVELS, NF4, dequantise, dynamic_map, quantise
from alol_jax.objectives.logprobs import logits_of
from tests.models.small_models import small
from tests.models.tiny_llama import here
from tests.models.torch_models import FOUR_BIT, random_torch

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        find_spec("bitsandbytes") is None,
        reason="pip install --no-deps bitsandbytes==0.50.2: absent",
    ),
]
SHAPES = [(128, 48), (192, 320), (1024, 512)]
ROUNDINGS = 2.0**-22  # a fused multiply-add of the scale, and the product with a level


def weights(shape, dtype="float32"):
    """A kernel [in, out] with outliers and a block of zeros, and the torch weight [out, in]."""
    import torch

    kernel = np.random.default_rng(0).standard_t(4, shape) * 0.02
    kernel[64:128, 7] = 0.0
    weight = torch.tensor(kernel.T.copy()).to(getattr(torch, dtype))
    return jnp.asarray(weight.float().numpy().T, dtype), weight


def theirs(weight, *, double):
    """bitsandbytes' dequantised kernel [in, out] as float32, and its state."""
    from bitsandbytes import functional as bnb

    packed, state = bnb.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=double
    )
    return bnb.dequantize_4bit(packed, state).float().numpy().T, state


def test_the_tables_are_theirs_bit_for_bit():
    from bitsandbytes import functional as bnb

    levels = bnb.get_4bit_type("nf4", device="cpu").numpy()
    np.testing.assert_array_equal(np.array(LEVELS, np.float32), levels)
    np.testing.assert_array_equal(dynamic_map(), bnb.create_dynamic_map().numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantised_values_are_theirs_bit_for_bit(shape, dtype):
    kernel, weight = weights(shape, dtype)
    leaves = jax.jit(quantise, static_argnames="nf4")(kernel, nf4=NF4(double=False))
    expected, state = theirs(weight, double=False)
    scale = state.absmax.numpy().reshape(shape[1], -1).T
    np.testing.assert_array_equal(leaves["nf4_scale"], scale)
    ours = jax.jit(dequantise, static_argnums=1)(leaves, dtype)
    np.testing.assert_array_equal(ours.astype(jnp.float32), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_their_quantised_scales_give_their_values(shape):
    kernel, weight = weights(shape)
    leaves = quantise(kernel, nf4=NF4(double=True))
    expected, state = theirs(weight, double=True)
    statistics = {
        "nf4_scale_codes": jnp.asarray(state.absmax.numpy().reshape(shape[1], -1).T),
        "nf4_scale_scale": jnp.asarray(state.state2.absmax.numpy()),
        "nf4_scale_mean": jnp.asarray(state.offset.numpy()),
    }
    assert {n: x.shape for n, x in (leaves | statistics).items()} == {
        n: x.shape for n, x in leaves.items()
    }
    ours = jax.jit(dequantise, static_argnums=1)(leaves | statistics, "float32")
    np.testing.assert_allclose(ours, expected, rtol=ROUNDINGS, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scales_are_quantised_as_their_nearest_search_does(shape):
    import torch
    from bitsandbytes import functional as bnb

    kernel, weight = weights(shape)
    leaves = quantise(kernel, nf4=NF4(double=True))
    scale = theirs(weight, double=False)[1].absmax
    mean = scale.mean()
    codes, largest = torch.ops.bitsandbytes.quantize_blockwise(
        (scale - mean).double(), bnb.create_dynamic_map(), 256
    )
    np.testing.assert_allclose(leaves["nf4_scale_mean"], mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(leaves["nf4_scale_scale"], largest.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(leaves["nf4_scale_codes"], codes.numpy().reshape(shape[1], -1).T)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_double_quantisation_ends_where_theirs_does(shape):
    kernel, weight = weights(shape)
    ours = np.asarray(dequantise(quantise(kernel, nf4=NF4(double=True)), jnp.float32))
    expected, state = theirs(weight, double=True)
    spread = state.state2.absmax.numpy().max()
    apart = np.abs(ours - expected) > ROUNDINGS * np.abs(expected)
    assert apart.mean() < 0.05  # blocks whose scale their CPU library does not round to nearest
    assert np.abs(ours - expected).max() <= 0.015 * spread


# In GPT-NeoX, 256 scales that are quantised together belong to queries, keys and values.
REFUSED = ("gpt_neox", True)


def stored_in_four_bits(kind, double, folder):
    """A random model, and the same that transformers has stored in ``folder`` in NF4."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    whole = random_torch(FOUR_BIT[kind](), AutoModelForCausalLM.from_config)
    whole.save_pretrained(folder / "whole")
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        folder / "whole", quantization_config=how, dtype=torch.float32, device_map="cpu"
    )
    theirs.save_pretrained(folder / "stored")
    return whole, theirs


@pytest.mark.parametrize(
    ("kind", "double"),
    [each for each in itertools.product(FOUR_BIT, (False, True)) if each != REFUSED],
)
def test_a_model_that_transformers_stored_in_four_bits_gives_its_logits(kind, double, tmp_path):
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    whole, theirs = stored_in_four_bits(kind, double, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path / "stored"))
    assert checkpoint.stored_nf4 == NF4(double)
    # Its own products of kernels in 4 bits are in half precision on a CPU.
    with torch.no_grad():
        for name, module in theirs.named_modules():
            if isinstance(module, Linear4bit):
                kernel = module.weight
                values = dequantize_4bit(kernel.data, kernel.quant_state).float()
                whole.get_submodule(name).weight.copy_(values)
                found = checkpoint.weights.read(f"{name}.weight")
                np.testing.assert_allclose(found, values.numpy(), rtol=ROUNDINGS, atol=1e-9)
        ids = np.random.default_rng(0).integers(5, 53, (2, 11))
        expected = whole(torch.tensor(ids)).logits.numpy()
    params = checkpoint.load("float32", here, NF4(double))
    model = dataclasses.replace(small(checkpoint.config), nf4=NF4(double))
    hidden = jax.jit(model.hidden)(params, ids, np.ones_like(ids))
    ours = logits_of(hidden, model.unembedding(params))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_scales_of_several_kernels_that_are_quantised_together_are_one_line(tmp_path):
    stored_in_four_bits(*REFUSED, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path / "stored"))
    with pytest.raises(UserError, match="query_key_value.weight holds 3 kernels whose scales are"):
        checkpoint.load("float32", here, NF4(double=True))
