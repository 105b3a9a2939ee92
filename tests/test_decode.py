"""Decoding: against full forward passes, rows on their own, where a response ends, who answers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alol_jax.decode import Sampling, cut, make_decoder, respond
from alol_jax.sharding import make_mesh, place_params
from alol_jax.tokens import byte_level, to_tokens
from alol_jax.types import UserError
from tests.models.small_llama import SMALL, hidden_of, random_params, small
from tests.scripted import Scripted
from tests.tiny_run import mesh_of

pytestmark = pytest.mark.usefixtures("quick_compiles")

PROMPTS = ((5, 9, 2, 30, 11), (7, 8), (3,), (1, 2, 3, 4))
NEW = 6
SAMPLED = Sampling(NEW, temperature=0.8, top_k=20, top_p=0.95)
KEYS = jax.random.split(jax.random.key(0), len(PROMPTS))


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


def decode(model, params, prompts, sampling, *, width, keys=None):
    tokens = to_tokens(prompts, [()] * len(prompts), shape=(width, 1), pad_id=0)
    keys = KEYS[: len(prompts)] if keys is None else keys
    return jax.device_get(
        make_decoder(model, sampling)(params, tokens.prompt, tokens.prompt_mask, keys)
    )


def test_greedy_is_the_argmax_of_a_full_forward_pass_for_every_token(model, params):
    ids, lengths = decode(model, params, PROMPTS, Sampling(NEW), width=7)
    assert lengths.tolist() == [NEW] * 4
    for prompt, row in zip(PROMPTS, ids, strict=True):
        written = list(prompt)
        for _ in range(NEW):
            padded = np.zeros((1, 12), np.int32)
            padded[0, : len(written)] = written
            hidden = hidden_of(model)(params, padded, np.arange(12)[None] < len(written))
            logits = np.asarray(hidden)[0, len(written) - 1] @ np.asarray(params["head/kernel"])
            written.append(int(np.argmax(logits)))
        assert row.tolist() == written[len(prompt) :]
    assert len({tuple(row) for row in ids}) == 4


@pytest.mark.parametrize("sampling", [Sampling(NEW), SAMPLED], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_the_batch_or_the_padding_around_it(model, params, sampling):
    together, _ = decode(model, params, PROMPTS, sampling, width=7)
    for row in (0, 2):
        alone, _ = decode(
            model, params, [PROMPTS[row]], sampling, width=5, keys=KEYS[row : row + 1]
        )
        assert alone[0].tolist() == together[row].tolist()
    turned, _ = decode(model, params, PROMPTS[::-1], sampling, width=7, keys=KEYS[::-1])
    np.testing.assert_array_equal(turned[::-1], together)


def test_sampled_answers_follow_the_key_and_steps_differ(model, params):
    first, _ = decode(model, params, PROMPTS, SAMPLED, width=7)
    again, _ = decode(model, params, PROMPTS, SAMPLED, width=7)
    other, _ = decode(
        model, params, PROMPTS, SAMPLED, width=7, keys=jax.random.split(jax.random.key(1), 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.5
    hot, _ = decode(model, params, PROMPTS, Sampling(NEW, temperature=1e6), width=7)
    assert all(len(set(row)) > 2 for row in hot.tolist())


# ------------------------------------------------------------------ where a response ends

SCRIPT = (
    (3, 4, 5, 9, 1, 1),
    (9, 9, 3, 3, 4, 5),
    (4, 3, 3, 4, 8, 8),
    (1, 2, 3, 5, 5, 7),
)


def said(sampling):
    """The lines of SCRIPT as far as they are decoded, and how many tokens the loop made."""
    model = Scripted(SCRIPT, vocab_size=10)
    # The prompts end in the token that chooses the line, after tokens that could end a response.
    prompts = [(9, 3, line) for line in range(4)]
    ids, lengths = decode(model, {}, prompts, sampling, width=3)
    jax.effects_barrier()
    lines = [tuple(row[:length].tolist()) for row, length in zip(ids, lengths, strict=True)]
    return lines, len(model.steps)


def test_without_an_ending_every_response_has_all_its_tokens():
    assert said(Sampling(6)) == (list(SCRIPT), 6)


def test_the_end_token_belongs_to_the_response_and_the_loop_leaves_when_all_rows_have_ended():
    lines, steps = said(Sampling(6, end=(5,)))
    assert lines == [(3, 4, 5), SCRIPT[1], SCRIPT[2], (1, 2, 3, 5)]
    assert steps == 6
    lines, steps = said(Sampling(6, end=(3,)))
    assert lines == [(3,), (9, 9, 3), (4, 3), (1, 2, 3)]
    assert steps == 3


def test_any_of_several_end_tokens_ends_a_response():
    lines, _ = said(Sampling(6, end=(9, 7, 8)))
    assert lines == [(3, 4, 5, 9), (9,), (4, 3, 3, 4, 8), SCRIPT[3]]


def test_a_stop_sequence_ends_a_response_where_its_last_token_stands():
    lines, _ = said(Sampling(6, stop=((3, 4), (5, 5))))
    assert lines == [(3, 4), (9, 9, 3, 3, 4), (4, 3, 3, 4), (1, 2, 3, 5, 5)]
    lines, _ = said(Sampling(6, end=(8,), stop=((2, 3, 5), (1,))))
    assert lines == [(3, 4, 5, 9, 1), SCRIPT[1], (4, 3, 3, 4, 8), (1,)]


def test_a_stop_sequence_does_not_reach_into_the_prompt():
    # The prompts end in 0 … 3: were they looked at, the first lines would end at once.
    lines, _ = said(Sampling(6, stop=((3, 0, 3), (0, 3), (1, 9), (2, 4))))
    assert lines == list(SCRIPT)


def test_a_stop_sequence_needs_all_its_tokens():
    lines, _ = said(Sampling(6, stop=((9, 9, 9), (4, 4), (3, 3, 3))))
    assert lines == list(SCRIPT)


def test_fewer_tokens_than_the_script_has_are_cut():
    assert said(Sampling(2)) == ([line[:2] for line in SCRIPT], 2)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"max_new_tokens": 0}, "got 0, 0.0, 0, 1.0"),
        ({"temperature": -0.1}, "got 4, -0.1, 0, 1.0"),
        ({"top_k": -1}, "got 4, 0.0, -1, 1.0"),
        ({"top_p": 0.0}, "got 4, 0.0, 0, 0.0"),
        ({"top_p": 1.1}, "got 4, 0.0, 0, 1.1"),
    ],
)
def test_impossible_sampling_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        Sampling(**({"max_new_tokens": 4} | changes))


# ------------------------------------------------------------------ answers to prompts

LINES = ("yes<|im_end|>", "no\nUser: why?", "<|im_end|>", " a  b<|im_end|>")


def speaker():
    """Says LINES[n] to a prompt that ends in the token n."""
    tokenizer = byte_level()
    ids = [tokenizer.encode(line) for line in LINES]
    lines = tuple(tuple((row + [ord("!")] * 16)[:16]) for row in ids)
    return Scripted(lines, tokenizer.vocab_size)


def test_answers_come_in_the_order_of_the_prompts_and_one_width_is_compiled_once():
    model, sampling = speaker(), Sampling(16, end=(258,))
    prompts = [[65] * length + [n % 4] for n, length in enumerate((1, 6, 0, 3, 2, 7, 5, 4, 1))]
    texts = respond(
        model,
        {},
        byte_level(),
        prompts,
        sampling,
        widths=(8, 4, 16),
        batch_size=2,
        key=jax.random.key(0),
        mesh=mesh_of(1),
        stop_texts=("\nUser:", "\nBot:"),
        label="answers",
    )
    expected = ("yes", "no", "", "a  b")
    assert texts == tuple(expected[prompt[-1]] for prompt in prompts)
    assert make_decoder(model, sampling)._cache_size() == 2


def test_a_text_is_cut_before_the_first_of_several_stops_and_stripped():
    assert cut(" one\nBot: two\nUser: three", ("\nUser:", "\nBot:")) == "one"
    assert cut("User: one ", ("\nUser:",)) == "User: one"
    assert cut("one", ()) == "one"
    assert cut("###", ("###",)) == ""


def test_the_answers_are_the_same_whatever_the_devices_and_the_batch_size():
    tokenizer = byte_level()
    model = small(dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size))
    params = random_params(model)
    ask = functools.partial(
        respond,
        model,
        tokenizer=tokenizer,
        prompts=[tokenizer.encode("x" * n) for n in range(1, 8)],
        sampling=Sampling(6, temperature=1.0, end=(tokenizer.eos_id,)),
        widths=(8,),
        key=jax.random.key(7),
        stop_texts=(),
        label="answers",
    )
    one = ask(params, mesh=mesh_of(1), batch_size=3)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    eight = ask(place_params(params, mesh), mesh=mesh, batch_size=4)
    assert one == eight
    assert len(set(one)) == 7
