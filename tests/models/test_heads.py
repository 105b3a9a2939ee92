"""The value head: padding, dropout, bounds, its start, and the published architecture's values."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from alol_jax.errors import UserError
from alol_jax.models.heads import ValueHead
from tests.models.small_models import close

GOLDEN = Path(__file__).parent.parent / "golden" / "baselines.npz"
HEAD = ValueHead(width=16, max_value=3.0)
MEAN = 1.2
value_of = jax.jit(HEAD)
HIDDEN = np.random.default_rng(0).normal(size=(4, 6, 16)).astype(np.float32)
MASK = (np.arange(6) >= np.array([[0], [2], [4], [5]])).astype(np.float32)


@pytest.fixture(scope="module")
def fresh():
    return HEAD.init(jax.random.key(0), MEAN)


@pytest.fixture(scope="module")
def params(fresh):
    """A head whose last layer is not zero, so that hidden states matter."""
    return fresh | {"summary/kernel": 2 * jax.random.normal(jax.random.key(1), (16, 1))}


def test_a_fresh_head_says_the_mean_reward_for_every_prompt(fresh):
    close(value_of(fresh, HIDDEN, MASK), np.full(4, MEAN), 1e-6)
    close(value_of(fresh, 100 * HIDDEN, MASK), np.full(4, MEAN), 1e-6)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_a_mean_reward_at_the_bound_is_not_infinite(mean):
    values = value_of(HEAD.init(jax.random.key(0), mean), HIDDEN, MASK)
    assert np.all((values > 0) & (values < 3)) and np.all(np.abs(values - mean) < 0.01)


def test_rewards_below_0_are_within_the_bounds_of_the_head(params):
    below = ValueHead(width=16, max_value=2.0, min_value=-4.0)
    fresh = below.init(jax.random.key(0), -1.0)
    close(below(fresh, HIDDEN, MASK), np.full(4, -1.0), 1e-5)
    values = below(params, HIDDEN, MASK)
    assert np.all((values > -4) & (values < 2))
    close(values, -4 + 2 * value_of(params, HIDDEN, MASK), 1e-5)


def test_a_fresh_head_starts_in_the_documented_ranges(fresh):
    width = HEAD.width
    bounds = {"q_proj": (6 / (4 * width)) ** 0.5, "o_proj": width**-0.5}
    bounds |= {"k_proj": bounds["q_proj"], "v_proj": bounds["q_proj"]}
    for name, bound in bounds.items():
        largest = np.abs(fresh[f"{name}/kernel"]).max()
        assert 0.9 * bound < largest <= bound, name
        assert not np.any(fresh[f"{name}/bias"]), name
    assert not np.allclose(fresh["k_proj/kernel"], fresh["v_proj/kernel"])


def test_padding_changes_nothing(params):
    values = value_of(params, HIDDEN, MASK)
    padding = np.where(MASK[..., None] > 0, HIDDEN, 1e6)
    np.testing.assert_array_equal(value_of(params, padding, MASK), values)
    wider = np.concatenate([np.full((4, 3, 16), 7.0, np.float32), HIDDEN], axis=1)
    mask = np.concatenate([np.zeros((4, 3), np.float32), MASK], axis=1)
    close(value_of(params, wider, mask), values, 1e-6)
    for row in range(4):
        real = HIDDEN[row, MASK[row] > 0]
        close(HEAD(params, real[None], np.ones((1, len(real))))[0], values[row], 1e-6)


def test_several_prompts_in_a_row_have_the_values_that_each_has_alone(params):
    """Whatever stands between them; and a slot without a prompt disturbs no other."""
    row = np.concatenate([HIDDEN[0], np.full((2, 16), 1e6, np.float32), HIDDEN[1]])
    columns, zero = np.arange(len(row)), np.zeros(6)
    slots = np.stack([columns < 6, columns >= 8, columns < 0, (columns >= 8) & (columns < 11)])
    found = value_of(params, row[None], slots[None])
    assert found.shape == (1, 4) and np.isfinite(found).all()
    masks = np.stack([zero + 1, zero + 1, np.arange(6) < 3])
    close(found[0, [0, 1, 3]], value_of(params, HIDDEN[[0, 1, 1]], masks), 1e-6)


def test_each_real_position_matters(params):
    values = value_of(params, HIDDEN, MASK)
    for position in range(6):
        changed = HIDDEN.copy()
        changed[:, position] += 1.0
        moved = np.abs(value_of(params, changed, MASK) - values) > 1e-5
        np.testing.assert_array_equal(moved, MASK[:, position] > 0)


def test_the_order_of_the_positions_does_not_matter_to_pooling(params):
    close(value_of(params, HIDDEN[:, ::-1], MASK[:, ::-1]), value_of(params, HIDDEN, MASK), 1e-6)


def test_dropout_acts_with_a_key_only(params):
    plain = value_of(params, HIDDEN, MASK)
    np.testing.assert_array_equal(plain, value_of(params, HIDDEN, MASK))
    first = value_of(params, HIDDEN, MASK, jax.random.key(0))
    np.testing.assert_array_equal(first, value_of(params, HIDDEN, MASK, jax.random.key(0)))
    assert np.all(np.abs(first - plain) > 1e-4)
    assert np.all(np.abs(first - value_of(params, HIDDEN, MASK, jax.random.key(1))) > 1e-4)
    never = ValueHead(width=16, max_value=3.0, dropout=0.0)
    close(never(params, HIDDEN, MASK, jax.random.key(0)), plain, 1e-6)


def test_dropout_acts_on_the_hidden_states_and_on_the_pooled_vector(params):
    rows, ones = np.tile(HIDDEN[:1], (40, 1, 1)), np.ones((40, 6))
    blind = params | {"v_proj/kernel": np.zeros((16, 16)), "v_proj/bias": np.ones(16)}
    assert np.ptp(value_of(blind, rows, ones)) < 1e-5
    assert np.ptp(value_of(blind, rows, ones, jax.random.key(0))) > 0.1
    # What is read from the pooled vector is one entry, dropped or not: two values, if it were all.
    single = params | {"summary/kernel": np.eye(16, 1)}
    values = value_of(single, rows, ones, jax.random.key(0))
    assert len(np.unique(np.round(values, 3))) > 10


def test_values_lie_between_zero_and_the_largest_reward(params):
    ones, hidden = np.ones((200, 6)), np.random.default_rng(1).normal(size=(200, 6, 16))
    values = value_of(params, 2 * hidden, ones)
    assert 0 < values.min() < 0.3 and 2.7 < values.max() < 3
    extreme = value_of(params, 1000 * hidden, ones)
    assert 0 <= extreme.min() and extreme.max() <= 3


def test_half_precision_hidden_states_give_float32_values(params):
    values = value_of(params, HIDDEN.astype(jnp.bfloat16), MASK)
    assert values.dtype == jnp.float32
    close(values, value_of(params, HIDDEN, MASK), 0.05)


def test_every_product_is_float32_on_every_hardware_and_in_the_gradient(params):
    def loss(params):
        return jnp.sum(HEAD(params, HIDDEN, MASK))

    products = list(_products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert len(products) > 10
    assert set(products) == {(jax.lax.Precision.HIGHEST,) * 2}


def _products(jaxpr):
    """The precisions of all matrix products of a jaxpr, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from _products(inner)


def test_every_leaf_has_a_gradient_after_one_step(fresh):
    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.mean((HEAD(p, HIDDEN, MASK) - jnp.arange(4.0)) ** 2))(params)

    first = gradient(fresh)
    moved = {path for path, leaf in first.items() if np.abs(leaf).max() > 0}
    assert moved == {"summary/kernel", "summary/bias"}  # the zero kernel blocks the rest, once
    second = gradient({path: leaf - 0.1 * first[path] for path, leaf in fresh.items()})
    largest = {path: np.abs(leaf).max() for path, leaf in second.items()}
    # A bias of the keys adds the same to every score, which the softmax takes away again.
    assert largest.pop("k_proj/bias") < 1e-7
    assert all(size > 1e-5 for size in largest.values()), largest


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="heads = 8 does not divide the model's width 36"):
        ValueHead(width=36, max_value=1.0)
    ValueHead(width=36, max_value=1.0, heads=4)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_published_value_head_is_met(seed):
    with np.load(GOLDEN) as archive:
        start = f"value_head__s{seed}/"
        case = {key[len(start) :]: archive[key] for key in archive.files if key.startswith(start)}
    stored = {key.removeprefix("param."): case[key] for key in case if key.startswith("param.")}
    attention = "source_seq_multihead_attn."
    kernels = np.split(stored.pop(attention + "in_proj_weight"), 3)
    biases = np.split(stored.pop(attention + "in_proj_bias"), 3)
    params = {"query": stored.pop("seq_query_weights")}
    for name, kernel, bias in zip(("q_proj", "k_proj", "v_proj"), kernels, biases, strict=True):
        params |= {f"{name}/kernel": kernel.T, f"{name}/bias": bias}
    for name, theirs in (("o_proj", attention + "out_proj"), ("summary", "summary")):
        params[f"{name}/kernel"] = stored.pop(f"{theirs}.weight").T
        params[f"{name}/bias"] = stored.pop(f"{theirs}.bias")
    assert not stored
    head = ValueHead(width=case["hidden"].shape[-1], max_value=float(case["max_value"]))
    values = jax.jit(head)(params, case["hidden"], np.ones(case["hidden"].shape[:2]))
    assert np.ptp(case["value"]) > 1e-3
    np.testing.assert_allclose(values, case["value"], rtol=2e-5, atol=2e-5)
    padded = np.pad(case["hidden"], ((0, 0), (2, 0), (0, 0)), constant_values=9.0)
    mask = np.pad(np.ones(case["hidden"].shape[:2]), ((0, 0), (2, 0)))
    np.testing.assert_allclose(head(params, padded, mask), case["value"], rtol=2e-5, atol=2e-5)
