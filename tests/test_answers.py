"""A policy answers prompts: where an answer ends."""

import dataclasses
import types

import jax
import pytest

from alol_jax.answers import answer
from alol_jax.decode import Sampling
from alol_jax.rewards import Reward
from alol_jax.tokens import byte_level
from alol_jax.types import Scored
from tests.scripted import Scripted
from tests.tiny_run import TASK, mesh_of


@pytest.mark.parametrize(("stop", "steps"), [(("\n",), 4), (("c\nd",), 5), ((), 8)])
def test_decoding_ends_where_a_stop_text_of_the_task_has_been_said(stop, steps):
    tokenizer = byte_level()
    model = Scripted(((*b"abc\ndefg",),) * 259, tokenizer.vocab_size)
    lm = types.SimpleNamespace(
        transformer=model,
        tokenizer=tokenizer,
        mesh=mesh_of(1),
        prompt_widths=(16,),
        frozen=lambda: {},
    )
    (row,) = answer(
        lm,
        dataclasses.replace(TASK, stop=stop),
        {},
        [Scored("a", "why?", "", "web", (), 0.0)],
        Reward((), (), ()),
        Sampling(8),
        batch_size=1,
        key=jax.random.key(0),
        label="answers",
    )
    jax.effects_barrier()
    said = "abc\ndefg"
    assert row.response == (said[: said.index(stop[0])] if stop else said)
    assert len(model.steps) == steps
