"""Decoding: against full forward passes, rows on their own, where a response ends, who answers."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from alol_jax.decoding import decode as decoding
from alol_jax.decoding.decode import make_decoder, respond
from alol_jax.decoding.prompts import one_per_row
from alol_jax.decoding.sampling import Sampling
from alol_jax.devices.sharding import make_mesh, place_params
from alol_jax.text.tokenizer_files import byte_level
from alol_jax.text.tokens import Batching
from alol_jax.types import Watch
from tests.models.small_models import SMALL, SMALLS, hidden_of, random_params, small
from tests.scripted import Scripted
from tests.tiny_run import mesh_of

PROMPTS = ((5, 9, 2, 30, 11), (7, 8), (3,), (1, 2, 3, 4))
NEW = 6
SAMPLED = Sampling(NEW, temperature=0.8, top_k=20, top_p=0.95)
MODES = {
    "greedy": Sampling(NEW),
    "greedy, penalty": Sampling(NEW, repetition_penalty=1.7),
    "sampled": SAMPLED,
    "sampled, penalty": dataclasses.replace(SAMPLED, repetition_penalty=1.7),
    "2 beams, penalty": Sampling(NEW, beams=2, repetition_penalty=2.5),
    "3 beams, ends, stop": Sampling(NEW, beams=3, end=(1, 4, 20), stop=((7, 30),)),
}
KEYS = jax.random.split(jax.random.key(0), len(PROMPTS))


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


def decode(model, params, prompts, sampling, *, width, keys=None, pad_id=0):
    read = one_per_row(prompts, width, pad_id)
    keys = KEYS[: len(prompts)] if keys is None else keys
    return jax.device_get(make_decoder(model, sampling)(params, read, keys))


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


@pytest.mark.parametrize("sampling", MODES.values(), ids=MODES)
def test_64_bit_types_change_no_answer(model, params, sampling):
    ids, lengths = decode(model, params, PROMPTS, sampling, width=7)
    with jax.enable_x64(True):
        wide, wide_lengths = decode(model, params, PROMPTS, sampling, width=7)
    assert wide.dtype == ids.dtype and wide_lengths.dtype == lengths.dtype
    np.testing.assert_array_equal(wide, ids)
    np.testing.assert_array_equal(wide_lengths, lengths)


@pytest.mark.parametrize("sampling", MODES.values(), ids=MODES)
def test_a_row_does_not_depend_on_the_batch_or_the_padding_around_it(model, params, sampling):
    together, lengths = decode(model, params, PROMPTS, sampling, width=7)
    for row in (0, 2):
        keys = KEYS[row : row + 1]
        alone, length = decode(model, params, [PROMPTS[row]], sampling, width=5, keys=keys)
        assert alone[0].tolist() == together[row].tolist()
        assert length[0] == lengths[row]
        # Pads are no tokens of the prompt, even if they are what the row will say.
        padded, _ = decode(
            model, params, PROMPTS, sampling, width=7, pad_id=int(alone[0, 0] if row else 9)
        )
        np.testing.assert_array_equal(padded, together)
    turned, _ = decode(model, params, PROMPTS[::-1], sampling, width=7, keys=KEYS[::-1])
    np.testing.assert_array_equal(turned[::-1], together)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_great_repetition_penalty_lets_nothing_of_prompt_and_response_come_again(
    model, params, beams
):
    ids, _ = decode(
        model, params, PROMPTS, Sampling(NEW, repetition_penalty=1e4, beams=beams), width=7
    )
    for prompt, row in zip(PROMPTS, ids.tolist(), strict=True):
        assert len({*prompt, *row}) == len(set(prompt)) + NEW
    plain, _ = decode(model, params, PROMPTS, Sampling(NEW, beams=beams), width=7)
    assert any(
        len({*p, *row}) < len(set(p)) + NEW for p, row in zip(PROMPTS, plain.tolist(), strict=True)
    )


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


# where a response ends

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


# answers to prompts

LINES = ("yes<|im_end|>", "no\nUser: why?", "<|im_end|>", " a  b<|im_end|>")


def speaker():
    """Says LINES[n] to a prompt that ends in the token n."""
    tokenizer = byte_level()
    ids = [tokenizer.encode(line) for line in LINES]
    lines = tuple(tuple((row + [ord("!")] * 16)[:16]) for row in ids)
    return Scripted(lines, tokenizer.vocab_size)


ASKED = [[65] * length + [n % 4] for n, length in enumerate((1, 6, 0, 3, 2, 7, 5, 4, 1))]
ENDING = Sampling(16, end=(258,))


def answers(model, prompts=ASKED, *, say=lambda line: None):
    return respond(
        model,
        {},
        prompts,
        ENDING,
        batching=Batching((8, 4, 16), 2, byte_level().pad_id, mesh_of(1)),
        key=jax.random.key(0),
        watch=Watch("answers", say),
    )


def test_answers_come_in_the_order_of_the_prompts_and_each_program_is_compiled_once():
    model = speaker()
    ids = [tuple(byte_level().encode(line)) for line in LINES]
    ids[1] = (*ids[1], *b"!!!!!!!!")[:16]  # has no end
    assert answers(model) == tuple(ids[prompt[-1]] for prompt in ASKED)
    layout = decoding._idle(model, ENDING, 2, 8, mesh_of(1))()
    programs = decoding._steps(model, ENDING, jax.tree.map(lambda x: x.sharding, layout))
    assert [program._cache_size() for program in programs] == [2, 1, 1]  # prompts of 8, then of 4


def test_the_speed_counts_all_tokens_and_how_many_were_written_in_idle_slots():
    said = []
    spoken = [16 if n == 1 else len(byte_level().encode(line)) for n, line in enumerate(LINES)]
    answers(speaker(), ASKED[:1], say=said.append)
    assert re.fullmatch(r"answers: 1 in \d+\.\d s, \d+ tokens/s, 1 slots 100% busy", said[0])
    # Two slots, one width: the second answer is written alone once the first has ended.
    answers(speaker(), [ASKED[0], ASKED[0][:-1] + [1]], say=said.append)
    share = (spoken[0] + spoken[1]) / (2 * max(spoken[:2]))
    assert said[1].endswith(f"tokens/s, 2 slots {share:.0%} busy")


@pytest.mark.parametrize("widths", [(6,), (1, 2, 3, 6)], ids=str)
@pytest.mark.parametrize("slots", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.3}], ids=str)
def test_an_answer_is_the_same_in_any_slot_at_any_time(model, params, slots, how, widths):
    assert_same_in_any_slot(model, params, slots, how, widths)


@pytest.mark.parametrize("slots", [2, 4])
def test_a_sliding_window_follows_an_answer_around_its_slot(slots):
    """Its columns begin anywhere and go on at the first one after the last."""
    model = small(SMALLS["gemma3"])
    given = {"temperature": 1.0}, (1, 2, 3, 6)
    assert_same_in_any_slot(model, random_params(model), slots, *given)


def assert_same_in_any_slot(model, params, slots, how, widths):
    """Twenty prompts, answers of 1 to 8 tokens: slots are refilled in every order, and columns of
    the cache are used again and again, or given up once no prompt is so long any more."""
    prompts = [tuple(1 + (7 * n + i) % 37 for i in range(1 + n % 5)) for n in range(20)]
    sampling = Sampling(8, end=(24, 28, 16, 2, 33), **how)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), np.arange(20))
    ids, lengths = decode(model, params, prompts, sampling, width=6, keys=keys)
    expected = tuple(tuple(row[:n].tolist()) for row, n in zip(ids, lengths, strict=True))
    assert len(set(lengths.tolist())) > 3
    found = respond(
        model,
        params,
        prompts,
        sampling,
        batching=Batching(widths, slots, 0, mesh_of(1)),
        key=jax.random.key(5),
        watch=Watch("answers"),
    )
    assert found == expected


def test_one_long_answer_does_not_hold_up_the_others():
    short, long = (7, 5, 5, 5, 5, 5, 5, 5), (1, 1, 1, 1, 1, 1, 1, 1)
    model = Scripted((long, short), vocab_size=10)
    respond(
        model,
        {},
        [(9, 0), *[(9, 1)] * 7],
        Sampling(8, end=(7,)),
        batching=Batching((2,), 2, 0, mesh_of(1)),
        key=jax.random.key(0),
        watch=Watch("answers"),
    )
    jax.effects_barrier()
    assert len(model.steps) == 8  # 16 tokens in 2 slots; whole batches would take 8 + 3


@pytest.mark.parametrize(
    "how", [{"temperature": 1.0}, {"beams": 2, "repetition_penalty": 2.5}], ids=["drawn", "beams"]
)
def test_the_answers_are_the_same_whatever_the_devices_and_the_batch_size(how):
    tokenizer = byte_level()
    model = small(dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size))
    params = random_params(model)
    ask = functools.partial(
        respond,
        model,
        prompts=[tokenizer.encode("x" * n) for n in range(1, 8)],
        sampling=Sampling(6, end=(tokenizer.eos_id,), **how),
        key=jax.random.key(7),
        watch=Watch("answers"),
    )
    one = ask(params, batching=Batching((8,), 3, tokenizer.pad_id, mesh_of(1)))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = place_params(params, mesh)
    eight = ask(placed, batching=Batching((8,), 4, tokenizer.pad_id, mesh))
    assert one == eight
    assert len(set(one)) > 4
