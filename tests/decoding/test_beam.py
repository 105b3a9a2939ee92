"""Beam search: which response wins, where it ends, when the search is over."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.decoding.beam import beam_search
from alol_jax.decoding.decode import make_decoder
from alol_jax.decoding.prompts import in_columns, one_per_row
from alol_jax.decoding.sampling import Sampling
from alol_jax.devices.sharding import make_mesh, place_params, place_rows
from alol_jax.models.cache import Cache
from alol_jax.types import Unembedding
from tests import packed
from tests.models.small_models import SMALL, random_params, small

KEYS = jax.random.split(jax.random.key(0), 32)  # nothing is drawn


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """A language model whose next token depends on the last one alone: log of ``table[last]``."""

    steps: list = dataclasses.field(default_factory=list)  # one entry per decoded token

    def unembedding(self, params):
        return Unembedding(params["log"])

    def prefill(self, params, prompts, *, room):
        tokens, _ = in_columns(prompts)
        rows = len(tokens)
        nothing = jnp.zeros((1, rows, 1, 1, 1))
        places = jnp.zeros((rows, 1), jnp.int32)
        zero = jnp.int32(0)
        cache = Cache(nothing, nothing, places, zero, zero, jnp.zeros((rows,), jnp.int32))
        return self._at(params, tokens[:, -1]), cache

    def decode_step(self, params, token, cache):
        jax.debug.callback(lambda slot: self.steps.append(int(slot)), cache.slot)
        return self._at(params, token), cache._replace(slot=cache.slot + 1)

    def _at(self, params, token):
        return jax.nn.one_hot(token, len(params["log"]))


CHAIN, TOKENS = Chain(), 20


def searched(table, starts, sampling):
    """The best response to each start of a chain of probabilities, and the steps it took.

    ``table`` has the rows that matter: what is not there is very unlikely, a missing row even.
    """
    chances = np.full((TOKENS, TOKENS), 1e-6)
    for last, row in table.items():
        for token, chance in row.items():
            chances[last, token] = chance
    params = {"log": jnp.log(jnp.asarray(chances / chances.sum(1, keepdims=True), jnp.float32))}
    CHAIN.steps.clear()
    found = responses(CHAIN, params, [(start,) for start in starts], sampling)
    jax.effects_barrier()
    return found, len(CHAIN.steps)


def responses(model, params, prompts, sampling):
    """The response to each prompt as far as it goes."""
    read = one_per_row(prompts, max(map(len, prompts)), 0)
    keys = KEYS[: len(prompts)]
    ids, lengths = jax.device_get(make_decoder(model, sampling)(params, read, keys))
    return [tuple(row[:length].tolist()) for row, length in zip(ids, lengths, strict=True)]


# the best response


def logp_of(model, params, prompts, said):
    """Log-probabilities of whole responses, by one forward pass: f32[B]."""
    grid, shape = packed.grid_of(prompts, [[response] for response in said], width=35)
    return np.asarray(packed.logp_of(model, params, grid, shape, chunk=64)).sum(axis=1)


def test_with_a_beam_for_every_beginning_the_likeliest_of_all_responses_is_found():
    model = small(dataclasses.replace(SMALL, vocab_size=5))
    every = list(itertools.product(range(5), repeat=3))
    prompts = [(n % 5, n // 5, 2) for n in range(8)]
    asked = [prompt for prompt in prompts for _ in every]
    for seed in range(3):
        params = random_params(model, seed)
        logp = logp_of(model, params, asked, every * len(prompts)).reshape(len(prompts), -1)
        likeliest = [every[best] for best in np.argmax(logp, axis=1)]
        assert responses(model, params, prompts, Sampling(3, beams=25)) == likeliest
        assert responses(model, params, prompts, Sampling(3)) != likeliest


@pytest.fixture(scope="module")
def many():
    """A model, its parameters, and 32 prompts of 1 to 4 tokens."""
    model = small()
    draw = np.random.default_rng(0)
    prompts = [tuple(draw.integers(0, 38, 1 + n % 4).tolist()) for n in range(32)]
    return model, random_params(model), prompts


def test_one_beam_is_greedy(many):
    model, params, prompts = many
    search = jax.jit(functools.partial(beam_search, model, sampling=Sampling(6)))
    ids, lengths = search(params, one_per_row(prompts, 4, 0))
    assert [tuple(row) for row in ids.tolist()] == responses(model, params, prompts, Sampling(6))
    assert set(lengths.tolist()) == {6}


def test_more_beams_find_likelier_responses_though_not_for_every_prompt(many):
    # A greedy response can be likelier: its beginning may fall behind on the way.
    model, params, prompts = many
    gain = -logp_of(model, params, prompts, responses(model, params, prompts, Sampling(6)))
    gain += logp_of(model, params, prompts, responses(model, params, prompts, Sampling(6, beams=4)))
    assert np.mean(gain > -1e-4) > 0.9 and np.mean(gain > 1e-2) > 0.2


def test_an_unlikely_beginning_is_kept_for_what_may_follow():
    table = {0: {1: 0.6, 2: 0.4}, 1: {3: 0.3, 4: 0.3, 5: 0.4}, 2: {6: 1.0}}
    assert searched(table, [0], Sampling(2))[0] == [(1, 5)]
    assert searched(table, [0], Sampling(2, beams=2))[0] == [(2, 6)]  # 0.4 > 0.6 · 0.4


# where a response ends

END = 9
BY_END = Sampling(4, end=(END,), beams=2)


@pytest.mark.parametrize(
    ("chance", "expected"),
    [
        (0.9, (1, 1, 1, 1)),  # (log 0.6 + 3 log 0.9) / 4 = −0.21 against log 0.4 / 1 = −0.92
        (0.2, (END,)),  # (log 0.6 + 3 log 0.2) / 4 = −1.33 against −0.92
    ],
)
def test_a_finished_response_is_worth_its_mean_log_probability(chance, expected):
    rest = {token: (1 - chance) / 4 for token in (2, 3, 4, 5)}
    table = {0: {1: 0.6, END: 0.4}, 1: {1: chance} | rest}
    assert searched(table, [0], BY_END)[0] == [expected]


def test_the_end_token_counts_as_one_of_the_tokens():
    # (log 0.45 + log 0.9) / 2 = −0.45 against log 0.55 / 1 = −0.60; over 1 token it were −0.90.
    table = {0: {1: 0.45, END: 0.55}, 1: {END: 0.9, 2: 0.1}}
    assert searched(table, [0], BY_END)[0] == [(1, END)]
    # (log 0.3 + log 0.9) / 2 = −0.65 against log 0.7 / 1 = −0.36; over 3 tokens −0.44, −0.18.
    table = {0: {1: 0.3, END: 0.7}, 1: {END: 0.9, 2: 0.1}}
    assert searched(table, [0], BY_END)[0] == [(END,)]


def test_an_end_that_is_not_among_the_first_beams_is_not_kept():
    # Third of three. Were it kept, log 0.2 = −1.61 would beat (log 0.41 + log 0.1 + …) / 4 < −2.
    spread = {token: 0.1 for token in range(10, 20)}
    table = {0: {1: 0.41, 2: 0.39, END: 0.2}, 1: spread, 2: spread}
    ((first, *_),), _ = searched(table, [0], BY_END)
    assert first == 1
    assert searched(table, [0], dataclasses.replace(BY_END, beams=3))[0] == [(END,)]


SEVERAL = Sampling(8, end=(5, 6, 7), beams=2)


def test_any_of_several_end_tokens_ends_a_response():
    table = {0: {1: 0.9, 2: 0.1}, 1: {6: 0.5, 3: 0.4, 4: 0.1}, 10: {7: 0.9, 8: 0.1}}
    assert searched(table, [0], SEVERAL)[0] == [(1, 6)]
    assert searched(table, [10], SEVERAL)[0] == [(7,)]


@pytest.mark.parametrize(
    "ends", [{"end": (5, 6, 7)}, {"end": (), "stop": ((5,), (6,), (7,))}], ids=["tokens", "stops"]
)
def test_all_beams_go_on_though_one_has_several_ends_that_are_likelier(ends):
    # 1 and 2 go on; were only 2 · 2 continuations looked at, 2 would be lost.
    table = {0: {1: 0.5, 5: 0.15, 6: 0.14, 7: 0.13, 2: 0.08}, 2: {3: 1.0}, 3: {3: 1.0}}
    asked = dataclasses.replace(SEVERAL, **ends)
    assert searched(table, [0], asked)[0] == [(2, *[3] * 7)]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # log 0.2 / 1 = −1.6 is below the worst, log 0.25 = −1.4: over, though 3 would be sure.
        ({0: {5: 0.35, 6: 0.25, 1: 0.2, 2: 0.2}, 1: {3: 1.0}}, (5,)),
        # log 0.35 / 2 = −0.5 is above both, log 0.45 = −0.8 and log 0.15 / 2 = −0.9.
        ({0: {1: 0.5, 5: 0.45}, 1: {3: 0.7, 6: 0.3}}, (1, *[3] * 7)),
        # log 0.21 / 2 = −0.8 is below the best, log 0.7 = −0.4, above the worst, −1.2.
        ({0: {5: 0.7, 1: 0.3}, 1: {3: 0.7, 6: 0.3}}, (1, *[3] * 7)),
    ],
    ids=["below", "above", "between"],
)
def test_the_search_goes_on_while_the_best_beam_is_worth_more_than_the_worst_finished(
    table, expected
):
    # The other row goes on to the last token: a row that is over must not.
    assert searched(table | {3: {3: 1.0}}, [0, 3], SEVERAL)[0] == [expected, (3,) * 8]


def test_a_stop_sequence_ends_a_response_as_an_end_token_does():
    table = {0: {1: 0.9, 2: 0.1}, 1: {2: 0.9, 4: 0.1}, 2: {3: 0.9, 5: 0.1}, 3: {3: 1.0}}
    stop = functools.partial(Sampling, 6, beams=2)
    assert searched(table, [0], stop(stop=((2, 3),)))[0] == [(1, 2, 3)]
    # Not all of its tokens, not with the prompt's.
    unsaid = stop(stop=((2, 2, 3), (0, 1), (1, 3)))
    assert searched(table, [0], unsaid)[0] == [(1, 2, 3, 3, 3, 3)]


# what it costs

SURE = {0: {1: 0.6, 2: 0.4}, 1: {END: 1.0}, 2: {END: 1.0}, 3: {4: 0.9, 5: 0.1}, 4: {1: 1.0}}


def test_the_search_is_over_when_no_beam_of_any_row_can_do_better():
    sampling = Sampling(30, end=(END,), beams=2)
    said, steps = searched(SURE, [0], sampling)
    assert (said, steps) == ([(1, END)], 2)
    said, steps = searched(SURE, [0, 3, 0], sampling)
    assert said == [(1, END), (4, 1, END), (1, END)]
    assert 3 <= steps < 6


def test_one_program_serves_all_prompts_and_parameters_of_a_width(many):
    model, params, prompts = many
    sampling = Sampling(6, beams=4)
    for given in (params, random_params(model, 1)):
        for asked in (prompts, prompts[::-1]):
            responses(model, given, asked, sampling)
    assert make_decoder(model, sampling)._cache_size() == 1


def test_a_prompt_is_read_once_whatever_the_number_of_beams(many):
    model, params, _ = many
    read = one_per_row([(1,)] * 5, 23, 0)
    keys = jax.random.split(jax.random.key(0), 5)
    program = str(jax.make_jaxpr(make_decoder(model, Sampling(3, beams=2)))(params, read, keys))
    assert "f32[5,23,32]" in program and "f32[10,1,32]" in program
    assert "f32[10,23,32]" not in program


def test_keys_and_values_stay_on_the_device_of_their_row(many):
    model, params, prompts = many
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    rows = place_rows(one_per_row(prompts[:8], 4, 0, groups=8), mesh)
    keys = jax.random.split(jax.random.key(0), 8)
    decoder = make_decoder(model, Sampling(6, beams=2))
    program = decoder.lower(place_params(params, mesh), rows, keys).compile().as_text()
    moved = re.findall(r"\w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all)\(", program)
    assert moved and max(len(shape.split(",")) for shape in moved) <= 3
