"""The presets have the sizes of the published models, and NF4 and a small grid of every family."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from alol_jax.models.families.registry import FAMILIES
from alol_jax.models.nf4 import NF4
from alol_jax.models.presets import PRESETS
from alol_jax.models.transformer import Transformer, is_block_kernel, param_shapes

PARAMETERS = {  # of the files on the hub, a tied head counted once
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini-4k": 3_821_079_552,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "llama-3.2-1b": 1_235_814_400,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(name):
    found = param_shapes(PRESETS[name])
    assert sum(math.prod(leaf.shape) for leaf in found.values()) == PARAMETERS[name]


def test_every_family_that_generates_has_a_tiny_preset():
    tiny = {config.family for name, config in PRESETS.items() if name.endswith("-tiny")}
    assert tiny == FAMILIES.keys() - {"bert", "roberta"}


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-tiny")])
def test_the_tensors_of_a_family_are_the_parameters_of_its_preset(name):
    config = PRESETS[name]
    rows = FAMILIES[config.family].rows(config)
    ours = param_shapes(config).keys() - {"head/kernel"}
    assert {path for row in rows for path in row.paths} == ours


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-tiny")])
def test_the_kernels_of_every_family_can_be_quantised(name):
    plain = Transformer(PRESETS[name], None, jnp.dtype("float32"), "none")
    nf4 = dataclasses.replace(plain, nf4=NF4(double=True))
    before, after = (jax.eval_shape(m.init, jax.random.key(0)) for m in (plain, nf4))
    assert not any(map(is_block_kernel, after))
    kernels = sum(leaf.size for path, leaf in before.items() if is_block_kernel(path))
    codes = sum(leaf.size for path, leaf in after.items() if path.endswith("nf4_codes"))
    assert 2 * codes == kernels
