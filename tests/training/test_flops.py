"""Closed-form operation counts against numbers worked out by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.models.blocks import LoRA
from alol_jax.models.config import AttentionConfig, Local, ModelConfig
from alol_jax.models.kernels import Rule, Seen, attention_mask
from alol_jax.models.nf4 import NF4
from alol_jax.models.presets import PRESETS
from alol_jax.models.rotary import Rotary
from alol_jax.models.transformer import Transformer
from alol_jax.training import flops
from tests.packed import grid_of

# D = 8, two layers, two heads of 4, one key/value head, F = 16, V = 10
SMALL = dataclasses.replace(
    PRESETS["llama-tiny"],
    vocab_size=10,
    width=8,
    layers=2,
    heads=2,
    kv_heads=1,
    head_width=4,
    mlp_width=16,
    rotary=Rotary(1e4, 4),
)
# q 8·8, k and v 8·4, o 8·8, gate, up and down 8·16 each
KERNELS = 2 * (64 + 32 + 32 + 64 + 3 * 128)


def shapes(config: ModelConfig, lora: LoRA | None = None, nf4: NF4 | None = None):
    model = Transformer(config, lora, jnp.dtype(jnp.float32), "none", nf4=nf4)
    return jax.eval_shape(model.init, jax.random.key(0))


def test_every_kernel_of_a_block_counts_and_embeddings_and_norms_do_not():
    found = flops.weights_per_token(shapes(SMALL))
    assert (found.attention + found.mlp, found.adapters) == (KERNELS, 0)


def test_adapters_count_on_their_own():
    *kernels, adapters = flops.weights_per_token(shapes(SMALL, LoRA(2, 4.0, 0.0, ("q_proj",))))
    assert (sum(kernels), adapters) == (KERNELS, 2 * 2 * (8 + 8))


@pytest.mark.parametrize("double", [False, True])
def test_a_quantised_kernel_counts_as_many_weights_as_it_stands_for(double):
    wide = dataclasses.replace(SMALL, width=64, mlp_width=64, head_width=32)
    lora = LoRA(2, 4.0, 0.0, ("q_proj",))
    plain = flops.weights_per_token(shapes(wide, lora))
    assert flops.weights_per_token(shapes(wide, lora, NF4(double))) == plain


# three texts of five tokens
FIFTEEN = {"tokens": 15, "pairs": 3 * float(flops.pairs_of(SMALL, 5)), "head_tokens": 6}


def test_a_forward_pass_by_hand():
    one = flops.forward(shapes(SMALL), SMALL, **FIFTEEN)
    assert one.kernels == 2 * 15 * KERNELS
    assert one.adapters == 0
    # 15 queries see 3 keys on average; scores and mixture, 2 FLOPs each, 2 heads of 4, 2 layers
    assert one.attention == 15 * 3 * 2 * 2 * 2 * 4 * 2
    assert one.head == 2 * 6 * 8 * 10
    assert one.total == one.kernels + one.attention + one.head


def test_padding_costs_products_but_no_attention():
    one = flops.forward(shapes(SMALL), SMALL, **FIFTEEN)
    padded = flops.forward(shapes(SMALL), SMALL, **(FIFTEEN | {"tokens": 20}))
    assert padded.kernels == one.kernels * 20 / 15
    assert (padded.attention, padded.head) == (one.attention, one.head)


def windowed(layers, *pattern):
    """SMALL with so many layers, some of which see the last three positions only."""
    attention = AttentionConfig(local=Local(3, pattern)) if pattern else AttentionConfig()
    return dataclasses.replace(SMALL, layers=layers, attention=attention)


@pytest.mark.parametrize("share", [True, False])
def test_pairs_of_attention_are_those_of_the_masks_of_all_layers(share):
    """A text of 5 tokens, and a prompt of 3 with responses of 2 and 4."""
    triangle = 2 * np.tril(np.ones((5, 5))).sum()
    assert flops.pairs_of(SMALL, 5) == flops.pairs_of(SMALL, 3, 2) == triangle
    grid, _ = grid_of([(1, 2, 3)], [[(4, 5), (6, 7, 8, 9)]], share=share)
    seen = Seen(*map(jnp.asarray, (grid.segment, grid.branch, grid.position)))
    seen = seen if share else seen._replace(branch=None)
    whole, near = (
        float(np.asarray(attention_mask(seen, Rule(True, window)))[grid.segment > 0].sum())
        for window in (None, 3)
    )
    assert near < whole
    for layers, local, *pattern in ((4, 0), (4, 4, True), (4, 2, True, False), (7, 6, *[True] * 6)):
        config = windowed(layers, *pattern, *[False] * (len(pattern) == 6))
        expected = local * near + (layers - local) * whole
        assert flops.pairs_of(config, 3, (2, 4), share=share) == expected


def test_pairs_of_many_examples_are_those_of_each():
    prompts, responses = np.array([3, 7]), np.array([[2, 4], [1, 5]])
    for share in (True, False):
        for config in (SMALL, windowed(4, True, False)):
            pairs = functools.partial(flops.pairs_of, config, share=share)
            each = [pairs(p, r) for p, r in zip(prompts, responses, strict=True)]
            np.testing.assert_array_equal(pairs(prompts, responses), each)


def test_full_training_costs_three_forward_passes():
    one = flops.forward(shapes(SMALL), SMALL, **FIFTEEN)
    assert flops.step(one, all_train=True, remat="none", head_again=False) == 3 * one.total


def test_a_frozen_base_gets_no_weight_gradients():
    lora = LoRA(2, 4.0, 0.0, ("q_proj", "down_proj"))
    one = flops.forward(shapes(SMALL, lora), SMALL, **FIFTEEN)
    spared = flops.step(one, all_train=True, remat="none", head_again=False) - flops.step(
        one, all_train=False, remat="none", head_again=False
    )
    assert spared == one.kernels + one.head


def test_remat_costs_the_blocks_once_more_and_chunks_the_head():
    one = flops.forward(shapes(SMALL), SMALL, **FIFTEEN)
    plain = flops.step(one, all_train=True, remat="none", head_again=False)
    blocks = flops.step(one, all_train=True, remat="full", head_again=False) - plain
    head = flops.step(one, all_train=True, remat="none", head_again=True) - plain
    assert (blocks, head) == (one.total - one.head, one.head)


def test_what_a_policy_keeps_is_not_computed_again():
    one = flops.forward(shapes(SMALL), SMALL, **FIFTEEN)
    plain, attention, projections, full = (
        flops.step(one, all_train=True, remat=remat, head_again=False)
        for remat in ("none", "attention", "projections", "full")
    )
    assert projections - plain == one.attention + one.adapters
    assert attention - projections == one.mlp_kernels > 0
    assert full - attention == one.attention_kernels > 0


def test_decoding_reads_every_weight_per_new_token_and_row():
    params = shapes(SMALL)
    found = flops.decoding(params, SMALL, rows=2, beams=1, prompt=4, new=3)
    prompts = {"tokens": 8, "pairs": 2 * float(flops.pairs_of(SMALL, 4)), "head_tokens": 0}
    read = flops.forward(params, SMALL, **prompts).total
    scores = 4 * 2 * 7 * 2 * 4 * 2  # 4 per score: rows, slots, heads, features, layers
    assert found == read + 3 * (2 * 2 * KERNELS + scores + 2 * 2 * 8 * 10)
    three = flops.decoding(params, SMALL, rows=2, beams=3, prompt=4, new=3)
    assert three - read == 3 * (found - read)  # the prompt is read once, whatever the beams


def test_llama_7b_costs_what_its_size_says():
    """6.74e9 parameters, of which 2 · 32000 · 4096 are embeddings and head."""
    config = PRESETS["llama-7b"]
    kernels = sum(flops.weights_per_token(shapes(config)))
    assert kernels == 6_738_415_616 - 2 * 32_000 * 4096 - 65 * 4096
