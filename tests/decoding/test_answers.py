"""A policy answers prompts: where an answer ends."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from alol_jax.decoding.answers import Sampler
from alol_jax.decoding.sampling import Sampling
from alol_jax.rewards.reward import Component, Reward
from alol_jax.text.tokenizer_files import byte_level
from alol_jax.text.tokens import Batching
from alol_jax.types import Limits, Scored, Watch
from tests.scripted import Scripted
from tests.tiny_run import TASK, mesh_of, scored_table

NOTHING = Reward(())


def before(stop, text):
    """The text before the first of the stop texts."""
    return text[: min((text.find(one) for one in stop if one in text), default=len(text))]


def answered(sampling, *, stop=(), line=b"abc\ndefg", reward=NOTHING):
    """The answer of a model that says ``line``, the steps that it took, and what was said of it."""
    tokenizer = byte_level()
    model = Scripted(((*line,),) * 259, tokenizer.vocab_size)
    lm = types.SimpleNamespace(
        transformer=model,
        tokenizer=tokenizer,
        mesh=mesh_of(1),
        limits=Limits(16, 16),
        options={"remat": "none"},
        logprob_chunk=64,
        shards=1,
        batching=lambda size, lengths: Batching((16,), size, tokenizer.pad_id, mesh_of(1)),
        for_decoding=lambda trained: (model, trained),
    )
    said = []
    task = dataclasses.replace(TASK, stop=stop, clean=functools.partial(before, stop))
    (row,) = Sampler(lm, task, sampling, 1).answer(
        {},
        scored_table([Scored("a", "why?", "", "web", (), 0.0)]),
        reward,
        key=jax.random.key(0),
        watch=Watch("answers", said.append),
    )
    jax.effects_barrier()
    return row.response, len(model.steps), said


@pytest.mark.parametrize(("stop", "steps"), [(("\n",), 4), (("c\nd",), 5), ((), 8)])
def test_decoding_ends_where_a_stop_text_of_the_task_has_been_said(stop, steps):
    said = "abc\ndefg"
    expected = said[: said.index(stop[0])] if stop else said
    assert answered(Sampling(8), stop=stop)[:2] == (expected, steps)


def test_further_end_tokens_end_an_answer_besides_the_tokenizers_own():
    assert answered(Sampling(8, end=(ord("d"),)))[:2] == ("abc\nd", 5)
    tokenizer = byte_level()
    ending = (*b"ab", tokenizer.eos_id, *b"defgh")
    assert answered(Sampling(8, end=(ord("d"),)), line=ending)[:2] == ("ab", 3)


def test_every_end_token_of_the_tokenizer_ends_an_answer(monkeypatch):
    tokenizer = byte_level()
    tokenizer.ends = (tokenizer.eos_id, ord("c"))
    monkeypatch.setattr("tests.decoding.test_answers.byte_level", lambda: tokenizer)
    response, steps, said = answered(Sampling(8))
    assert (response, steps) == ("ab", 3) and "; 1 ended, 0 hit a stop" in said[0]


def test_how_fast_it_went_and_how_answers_end_is_said_once():
    line, warning = answered(Sampling(8))[2]
    assert line.startswith("answers: 1 in ")
    assert line.endswith("; 0 ended, 0 hit a stop sequence, 1 hit the limit (0% by themselves)")
    assert "most answers did not end by themselves: raise config.decode.max_new_tokens=8" in warning
    assert "end token '<|im_end|>'" in warning
    (line,) = answered(Sampling(8), stop=("\n",))[2]
    assert line.endswith("; 0 ended, 1 hit a stop sequence, 0 hit the limit (100% by themselves)")
    (line,) = answered(Sampling(8, end=(ord("d"),)))[2]
    assert line.endswith("; 1 ended, 0 hit a stop sequence, 0 hit the limit (100% by themselves)")


def test_a_stop_text_that_no_answer_has_is_a_warning():
    *_, warning = answered(Sampling(8), stop=("###",))[2]
    assert warning == "warning: no answer has the stop sequence '###': does this model write it?"


def test_a_stop_text_that_is_there_without_its_spaces_is_no_warning():
    said = answered(Sampling(8), stop=(" c",))[2]  # cut at the limit, with a "c" in it
    assert not any("stop sequence ' c'" in line or "'c'" in line for line in said)
    warnings = answered(Sampling(8), stop=(" ###", "###"))[2][2:]
    assert warnings == ["warning: no answer has the stop sequence '###': does this model write it?"]


def test_what_the_reward_did_with_the_answers_is_said():
    component = Component(
        "calm",
        1.0,
        1.0,
        "calm",
        lambda prompts, responses: np.ones(len(responses)),
        notes=lambda prompts, responses: (f"{prompts[0]} {responses[0]} was noted.",),
    )
    said = answered(Sampling(8), line=b"abcdefgh", reward=Reward((component,)))[2]
    assert said[-1] == "calm: why? abcdefgh was noted."
