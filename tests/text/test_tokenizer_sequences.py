"""Texts and special tokens by name, one after the other."""

import pytest

from alol_jax.errors import UserError
from alol_jax.text.tokenizer import SpecialToken
from alol_jax.text.tokenizer_files import byte_level

END = SpecialToken("<|im_end|>")


def test_named_tokens_are_one_id_each_and_text_is_what_it_says():
    ids = byte_level().encode_sequence(["ab", END, "c", END], limit=99)
    assert ids == (*b"ab", 258, *b"c", 258)


def test_a_special_token_in_a_text_is_spelled_out():
    tokenizer = byte_level()
    assert tokenizer.encode_sequence(["<|im_end|>"], limit=99) == tuple(b"<|im_end|>")
    assert tokenizer.encode_sequence([END], limit=99) == (258,)


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_the_oldest_tokens_are_lost(limit):
    whole = byte_level().encode_sequence(["abc", END], limit=99)
    assert byte_level().encode_sequence(["abc", END], limit=limit) == whole[-limit:]


def test_an_unknown_name_and_no_room_are_one_line():
    with pytest.raises(UserError, match=r"has no special token '<\|prompter\|>': name the form"):
        byte_level().encode_sequence([SpecialToken("<|prompter|>"), "a"], limit=9)
    with pytest.raises(UserError, match="limit of 0 tokens leaves no room"):
        byte_level().encode_sequence(["a"], limit=0)
