"""Which leaves are adapters, and what a LoRA description refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.adapters import adapters_of, is_adapter, make_lora, trainable_summary
from alol_jax.models.blocks import times_b
from alol_jax.models.nf4 import NF4
from tests.models.small_models import SMALL, SMALLS, base_of, random_params, small

PROJECTIONS = SMALL.projections


def lora(config=SMALL, **changes):
    fields = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "modules": ("q_proj", "v_proj")}
    return make_lora(config, **(fields | changes))


def test_a_rank_of_zero_is_full_fine_tuning():
    assert lora(rank=0) is None
    assert lora(rank=0, modules=("nothing like it",)) is None


def test_the_description_is_what_the_config_says():
    described = lora()
    assert (described.rank, described.alpha, described.dropout) == (4, 8.0, 0.1)
    assert described.modules == ("q_proj", "v_proj")
    assert described.scale == 2.0


def test_all_linear_means_every_projection_and_not_the_embedding():
    described = lora(modules=("all-linear",))
    assert described == lora(modules=PROJECTIONS)
    adapted = adapters_of(jax.eval_shape(small(lora=described).init, jax.random.key(0)))
    assert {path.split("/")[1] for path in adapted} == set(PROJECTIONS)
    assert len(adapted) == 2 * len(PROJECTIONS)


def test_a_model_without_a_gate_has_no_adapter_for_it():
    described = lora(SMALLS["gpt2"], modules=("all-linear",))
    assert described.modules == ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    with pytest.raises(UserError, match=r"names \['gate_proj'\]"):
        lora(SMALLS["gpt2"], modules=("gate_proj",))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"rank": -1}, "rank -1 must be ≥ 0"),
        ({"dropout": 1.0}, r"dropout 1.0 in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout -0.1 in \[0, 1\)"),
        ({"alpha": 0.0}, "alpha 0.0 above 0"),
        ({"modules": ("q_proj", "query")}, r"names \['query'\]; this model has q_proj, k_proj"),
        ({"modules": ()}, "names nothing"),
        ({"modules": ("all-linear", "q_proj")}, r"names \['all-linear'\]"),
    ],
)
def test_what_the_model_does_not_have_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        lora(**changes)


def test_parameters_split_into_adapters_and_base_without_rest():
    params = random_params(small(lora=lora()))
    adapters, base = adapters_of(params), base_of(params)
    assert base | adapters == params and not set(base) & set(adapters)
    assert set(base) == set(random_params(small()))
    assert {path.rsplit("/", 1)[1] for path in adapters} == {"lora_a", "lora_b"}
    assert adapters["layers/v_proj/lora_b"] is params["layers/v_proj/lora_b"]
    assert is_adapter("layers/q_proj/lora_a") and not is_adapter("layers/lora_a/kernel")


def test_the_summary_counts_what_trains_module_by_module():
    params = random_params(small(lora=lora(modules=("q_proj",))))
    queries = SMALL.heads * SMALL.head_width
    training = SMALL.layers * 4 * (SMALL.width + queries)
    total = sum(np.size(leaf) for leaf in params.values())
    first, *modules = trainable_summary(adapters_of(params), base_of(params))
    assert first.startswith(f"training {training:,} of {total:,} parameters (")
    assert [line.split() for line in modules] == [
        ["layers/q_proj", f"{training:,}", "lora_a", "2×32×4,", "lora_b", "2×4×48"]
    ]
    everything = trainable_summary(base_of(params), {})
    assert "(100.00%)" in everything[0]
    assert {line.split()[0] for line in everything[1:]} == {
        p.rsplit("/", 1)[0] for p in base_of(params)
    }


def test_a_quantised_base_counts_its_weights_and_not_its_bytes():
    model = small(dataclasses.replace(SMALL, width=64, mlp_width=128, head_width=16), lora=lora())
    plain = jax.eval_shape(model.init, jax.random.key(0))
    packed = jax.eval_shape(
        dataclasses.replace(model, nf4=NF4(double=True)).init, jax.random.key(0)
    )
    lines = [trainable_summary(adapters_of(leaves), base_of(leaves)) for leaves in (plain, packed)]
    assert lines[0] == lines[1]


def test_the_second_product_of_an_adapter_has_the_gradients_of_a_matrix_product():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, 4))
    b, dy = jax.random.normal(keys[1], (4, 7)), jax.random.normal(keys[2], (2, 5, 7))
    ours, our_gradient = jax.vjp(times_b, x, b)
    plain, gradient = jax.vjp(jnp.matmul, x, b)
    np.testing.assert_array_equal(ours, plain)
    for found, expected in zip(our_gradient(dy), gradient(dy), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
