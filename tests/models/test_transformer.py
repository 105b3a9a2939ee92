"""The transformer: what changes nothing (padding, cache, remat, meshes), then what does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.decoding.prompts import one_per_row
from alol_jax.devices.sharding import make_mesh, place_params, place_rows
from alol_jax.models import blocks
from alol_jax.models.adapters import adapters_of
from alol_jax.models.blocks import dropout
from alol_jax.models.cache import Cache
from alol_jax.models.transformer import REMAT
from alol_jax.objectives.logprobs import logits_of
from tests.models.small_models import (
    ADAPTERS,
    SMALL,
    SMALLS,
    base_of,
    close,
    hidden_of,
    random_params,
    small,
)
from tests.packed import left_padded

PROMPTS = ((5, 9, 2, 30, 11), (7, 8), (3,))
TOKENS = np.random.default_rng(1).integers(0, SMALL.vocab_size, (4, 9))


PROJECTIONS = SMALL.projections


@pytest.fixture(scope="module", params=SMALLS)
def model(request):
    return small(SMALLS[request.param])


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.fixture(scope="module")
def hidden(model, params):
    """Hidden states of TOKENS without padding."""
    return hidden_of(model)(params, TOKENS, np.ones_like(TOKENS))


# padding


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing_for_real_tokens(model, params, side):
    def read(width, pad_id):
        ids, mask = left_padded(PROMPTS, width, pad_id)
        if side == "right":
            order = np.argsort(-mask, axis=1, kind="stable")
            ids, mask = (np.take_along_axis(x, order, axis=1) for x in (ids, mask))
        return np.asarray(hidden_of(model)(params, ids, mask)), mask > 0

    tight, wide = read(5, 0), read(9, 37)
    for row, prompt in enumerate(PROMPTS):
        alone = hidden_of(model)(params, np.array([prompt]), np.ones((1, len(prompt))))[0]
        for states, real in (tight, wide):
            assert real[row].sum() == len(prompt)
            close(states[row][real[row]], alone)


def test_padding_may_sit_between_tokens(model, params, hidden):
    places = np.array([1, 2, 4, 5, 6, 9, 10, 12, 13])
    tokens, mask = np.full((4, 14), 3), np.zeros((4, 14))
    tokens[:, places], mask[:, places] = TOKENS, 1
    close(hidden_of(model)(params, tokens, mask)[:, places], hidden)


def test_positions_are_counted_unless_they_are_given(model, params, hidden):
    mask, counted = np.ones_like(TOKENS), np.broadcast_to(np.arange(9), TOKENS.shape)
    given = functools.partial(jax.jit(model.hidden), params, TOKENS, mask)
    np.testing.assert_array_equal(given(positions=counted), hidden)
    assert np.abs(given(positions=counted[:, ::-1]) - hidden).max() > 1e-3


def test_a_row_does_not_see_the_other_rows(model, params, hidden):
    others = TOKENS.copy()
    others[1:] = (others[1:] + 5) % SMALL.vocab_size
    states = hidden_of(model)(params, others, np.ones_like(others))
    np.testing.assert_array_equal(states[0], hidden[0])
    assert not np.allclose(states[1], hidden[1], atol=0.1)


def test_a_later_token_changes_no_earlier_state_unless_the_model_reads_both_ways(
    model, params, hidden
):
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % SMALL.vocab_size
    states = hidden_of(model)(params, changed, np.ones_like(changed))
    moved = np.abs(states - hidden).max(axis=-1) > 1e-3
    if model.config.causal:
        np.testing.assert_array_equal(states[:, :5], hidden[:, :5])
        assert np.all(moved[:, 5:]) and not np.any(moved[:, :5])
    else:
        assert np.all(moved)


def test_the_order_of_earlier_tokens_matters(model, params, hidden):
    swapped = TOKENS[:, [1, 0, *range(2, 9)]]
    states = hidden_of(model)(params, swapped, np.ones_like(swapped))
    assert np.all(np.abs(states[:, -1] - hidden[:, -1]).max(axis=-1) > 1e-3)


# the cache


@pytest.mark.parametrize(
    "model",
    [small(config) for config in SMALLS.values() if config.causal] + [small(lora=ADAPTERS)],
    ids=lambda model: f"{model.config.family} {'adapted' if model.lora else ''}",
)
def test_decoding_with_a_cache_is_the_whole_sequence_at_once(model):
    params = random_params(model)
    steps = 4
    prompts, prompt_mask = left_padded(PROMPTS, 6, 0)
    following = TOKENS[:3, :steps]
    ids = np.concatenate([prompts, following], axis=1)
    mask = np.concatenate([prompt_mask, np.ones((3, steps))], axis=1)
    whole = hidden_of(model)(params, ids, mask)
    state, cache = jax.jit(model.prefill, static_argnames="room")(
        params, one_per_row(PROMPTS, 6, 0), room=steps
    )
    close(state, whole[:, 5])
    step = jax.jit(model.decode_step)
    for n in range(steps):
        state, cache = step(params, following[:, n], cache)
        close(state, whole[:, 6 + n])
    np.testing.assert_array_equal(cache.position, [len(p) + steps for p in PROMPTS])
    np.testing.assert_array_equal(cache.filled, mask > 0)
    turned, _ = step(params, following[::-1, 0], cache.take(jnp.array([[2, 1, 0]])))
    straight, _ = step(params, following[:, 0], cache)
    close(turned, straight[::-1])


def test_a_token_is_written_into_the_cache_in_place():
    model, rows, slots = small(), 4, 5000
    c = model.config
    keys, values = (c.head_width, slots), (slots, c.head_width)
    stored, others = (
        jax.ShapeDtypeStruct((c.layers, rows, c.kv_heads, *shape), jnp.float32)
        for shape in (keys, values)
    )
    places = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    each = jax.ShapeDtypeStruct((rows,), jnp.int32)
    step = jax.jit(model.decode_step, donate_argnums=2).lower(
        jax.eval_shape(model.init, jax.random.key(0)),
        each,
        Cache(stored, others, places, number, number, each),
    )
    extra = step.compile().memory_analysis().temp_size_in_bytes
    both = 2 * stored.size * stored.dtype.itemsize
    assert extra < 0.9 * both  # never a second cache; one layer is read at a time


# variants of one model


@pytest.fixture(scope="module")
def llama():
    """SMALL, its parameters and its hidden states of TOKENS."""
    model = small()
    params = random_params(model)
    return model, params, hidden_of(model)(params, TOKENS, np.ones_like(TOKENS))


def value_and_grads(model):
    """(params, tokens) -> a smooth function of all hidden states, and its gradient."""

    @jax.jit
    def both(params, tokens):
        def score(params):
            states = model.hidden(params, tokens, jnp.ones(tokens.shape))
            return jnp.mean(jnp.sin(logits_of(3 * states, model.unembedding(params))))

        return jax.value_and_grad(score)(params)

    return both


@pytest.fixture(scope="module")
def adapted():
    """A model with adapters, its parameters, and the value and gradients of a score."""
    model = small(lora=ADAPTERS)
    params = random_params(model)
    return model, params, value_and_grads(model)(params, TOKENS)


def assert_same_gradients(left, right, tolerance=1e-5):
    """Up to ``tolerance`` of the largest entry of each leaf, or of 1."""
    close(left[0], right[0], tolerance)
    assert left[1].keys() == right[1].keys()
    for path, gradient in left[1].items():
        room = tolerance * max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(gradient, right[1][path], rtol=0, atol=room, err_msg=path)


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_recomputing_activations_changes_neither_values_nor_gradients(adapted, remat):
    model, params, expected = adapted
    again = value_and_grads(dataclasses.replace(model, remat=remat))(params, TOKENS)
    assert_same_gradients(again, expected, 1e-6)
    assert all(np.abs(gradient).max() > 1e-5 for gradient in expected[1].values())


def test_eight_devices_say_what_one_says(adapted):
    model, params, expected = adapted
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed, tokens = place_params(params, mesh), place_rows(TOKENS, mesh)
    kernel = placed["layers/up_proj/kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, SMALL.width // 2, SMALL.mlp_width // 2)
    eight = jax.device_get(value_and_grads(model)(placed, tokens))
    bound = (
        5e-5  # one token has large scores: with jaxlib 0.12 its rounding is 10 times the others'
    )
    assert_same_gradients(eight, expected, bound)
    one = hidden_of(model)(params, TOKENS, np.ones_like(TOKENS))
    close(hidden_of(model)(placed, tokens, place_rows(np.ones(TOKENS.shape), mesh)), one, bound)


def test_a_tied_head_is_the_transposed_embedding_and_an_untied_one_a_leaf_of_its_own(llama):
    model, params, _ = llama
    tied = small(dataclasses.replace(SMALL, tied_embeddings=True))
    leaves = random_params(tied)
    assert set(params) - set(leaves) == {"head/kernel"}
    np.testing.assert_array_equal(tied.unembedding(leaves).kernel, leaves["embed/embedding"].T)
    np.testing.assert_array_equal(model.unembedding(params).kernel, params["head/kernel"])


def test_grouped_heads_are_full_heads_with_repeated_keys_and_values(llama):
    _, params, hidden = llama
    full = small(dataclasses.replace(SMALL, kv_heads=SMALL.heads))
    grown = dict(params)
    for path in ("layers/k_proj/kernel", "layers/v_proj/kernel"):
        heads = params[path].reshape(SMALL.layers, SMALL.width, SMALL.kv_heads, -1)
        grown[path] = jnp.repeat(heads, 2, axis=2).reshape(SMALL.layers, SMALL.width, -1)
    close(hidden_of(full)(grown, TOKENS, np.ones_like(TOKENS)), hidden)


def test_bfloat16_runs_and_is_close(llama):
    _, params, hidden = llama
    stored = {path: leaf.astype(jnp.bfloat16) for path, leaf in params.items()}
    states = hidden_of(small(dtype="bfloat16"))(stored, TOKENS, np.ones_like(TOKENS))
    assert states.dtype == jnp.bfloat16
    error = np.abs(np.asarray(states, np.float32) - hidden)
    assert error.mean() < 0.02 * np.abs(hidden).mean() and error.max() < 0.2


def test_adapters_stay_float32_on_a_bfloat16_base(adapted):
    model, params, (value, _) = adapted
    half = dataclasses.replace(model, dtype=jnp.dtype("bfloat16"))
    base = {path: leaf.astype(jnp.bfloat16) for path, leaf in base_of(params).items()}
    half_value, gradients = value_and_grads(half)(base | adapters_of(params), TOKENS)
    assert {gradients[path].dtype for path in adapters_of(params)} == {jnp.dtype("float32")}
    assert abs(float(half_value - value)) < 0.05


# adapters


def test_fresh_adapters_change_nothing_and_start_as_documented():
    model = small(lora=ADAPTERS)
    fresh = model.init(jax.random.key(3))
    assert set(fresh) == set(random_params(model))
    for name in PROJECTIONS:
        lora_a = np.asarray(fresh[f"layers/{name}/lora_a"])
        assert 0.9 < np.abs(lora_a).max() * lora_a.shape[1] ** 0.5 <= 1.0
        assert not np.any(fresh[f"layers/{name}/lora_b"])
    first, second = fresh["layers/q_proj/lora_a"]
    assert not np.allclose(first, second)
    mask = np.ones_like(TOKENS)
    with_adapters = hidden_of(model)(fresh, TOKENS, mask)
    close(with_adapters, hidden_of(small())(base_of(fresh), TOKENS, mask), 1e-6)


@pytest.mark.parametrize("modules", [PROJECTIONS, ("q_proj", "down_proj")])
def test_adapters_are_the_kernel_plus_alpha_over_rank_times_a_b(llama, modules):
    _, params, hidden = llama
    lora = dataclasses.replace(ADAPTERS, modules=modules)
    model = small(lora=lora)
    adapters = adapters_of(random_params(model, seed=5))
    assert len(adapters) == 2 * len(modules)
    merged = dict(params)
    for name in modules:
        product = adapters[f"layers/{name}/lora_a"] @ adapters[f"layers/{name}/lora_b"]
        merged[f"layers/{name}/kernel"] += lora.alpha / lora.rank * product
    mask = np.ones_like(TOKENS)
    states = hidden_of(model)(params | adapters, TOKENS, mask)
    close(states, hidden_of(small())(merged, TOKENS, mask), 3e-5)
    assert np.abs(states - hidden).max() > 0.1


def test_dropout_acts_with_a_key_only_and_only_on_what_adapters_read():
    model = small(lora=dataclasses.replace(ADAPTERS, dropout=0.5))
    params, mask = random_params(model), np.ones_like(TOKENS)
    plain = hidden_of(small(lora=ADAPTERS))(params, TOKENS, mask)
    close(hidden_of(model)(params, TOKENS, mask), plain, 1e-6)

    def with_key(params, seed):
        return hidden_of(model)(params, TOKENS, mask, jax.random.key(seed))

    first = with_key(params, 0)
    np.testing.assert_array_equal(first, with_key(params, 0))
    assert np.abs(first - plain).max() > 0.1
    assert np.abs(first - with_key(params, 1)).max() > 0.1
    silent = {p: jnp.zeros_like(x) if p.endswith("lora_b") else x for p, x in params.items()}
    np.testing.assert_array_equal(with_key(silent, 0), with_key(silent, 1))


def test_every_projection_of_every_layer_drops_by_a_key_of_its_own(monkeypatch):
    keys = []

    def recorded(x, rate, key):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return x

    monkeypatch.setattr(blocks, "dropout", recorded)
    model = small(lora=dataclasses.replace(ADAPTERS, dropout=0.5))
    key = jax.random.key(0)
    jax.jit(model.hidden)(random_params(model), TOKENS, np.ones_like(TOKENS), key)
    jax.effects_barrier()
    assert len(set(keys)) == len(keys) == SMALL.layers * len(PROJECTIONS)


def test_dropout_keeps_the_mean():
    kept = dropout(jnp.ones(10_000), 0.2, jax.random.key(0))
    np.testing.assert_array_equal(jnp.unique(kept), np.float32([0.0, 1.25]))
    assert abs(float(kept.mean()) - 1.0) < 4 * 1.25 * (0.2 * 0.8 / 10_000) ** 0.5
