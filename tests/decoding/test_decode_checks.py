"""A config that cannot decode is refused before the first stage runs, in one line."""

import pytest

from alol_jax.checks import check
from alol_jax.errors import UserError
from alol_jax.objectives.registry import get_objective
from tests.tiny_run import TASK, small_options, tiny_lm

LM = tiny_lm()  # prompts of at most 32 tokens, 1024 positions


def checked(decode=None, generate=None):
    config = small_options()
    config.decode.update(decode or {})
    config.generate.update(generate or {})
    check(config, TASK, get_objective(config.objective.name), LM)


def test_the_published_way_to_decode_passes_with_draws_for_generate():
    published = {"beams": 2, "repetition_penalty": 2.5, "end": (13, 46), "max_new_tokens": 992}
    checked(published, {"temperature": 0.7, "top_p": 0.9})
    checked(published)


@pytest.mark.parametrize(
    ("decode", "said"),
    [
        ({"beams": 0}, "decoding: beams=0 must be 1 or more"),
        ({"repetition_penalty": -1.0}, "decoding: repetition_penalty=-1.0 must be above 0"),
        ({"max_new_tokens": 0}, "decoding: max_new_tokens=0 must be 1 or more"),
        ({"max_new_tokens": 993}, "max_new_tokens=993 after prompts of 32 tokens .* at most 992"),
        ({"end": (5, 100_000)}, "config.decode.end=.* 100000 is not a token id"),
        ({"end": (-1,)}, "config.decode.end=.* -1 is not a token id"),
        ({"end": (".",)}, r"config.decode.end=.* '\.' is not a token id"),
    ],
)
def test_a_setting_that_no_model_can_decode_with_is_named(decode, said):
    with pytest.raises(UserError, match=said) as caught:
        checked(decode)
    assert "\n" not in str(caught.value)


def test_draws_are_checked_too():
    with pytest.raises(UserError, match="decoding: top_p=1.5 must be in"):
        checked(generate={"temperature": 0.7, "top_p": 1.5})
